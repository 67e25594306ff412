"""`clipkit-data memory`: embeddings of a frozen model become a memory that is searched by faiss.

Lives here: `command.py` (build, add, info), `build.py` (what is written, in which order),
`sources.py` (where rows come from: embeddings, or another memory), `faiss_index.py` (flat, or IVF
with 8-bit codes), `recall.py` (how many of the true neighbours an index finds). How a memory is
read and searched: `clipkit.retrieval.memory`.
"""
