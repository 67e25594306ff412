"""`clipkit-data scenes`: pictures of single things composed into scenes, with captions that say
where each thing lies, and with captions that are nearly right.

Hundreds of kinds make the scenes of a batch share no things, as on web data: nothing in the batch
then asks a model for the relation, and only hard negatives do.
What lives here: `things.py` (which pictures are used, under which names), `wording.py` (captions
and their negatives, pure text), `layout.py` (places and pixels), `build.py` (splits and files),
`command.py`. `questions.py` of this folder's parent asks for the captions.
"""
