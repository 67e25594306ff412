"""The engine: config -> run -> steps. Memory and distribution are owned here and nowhere else.

Lives here: `preflight.py` and `train_files.py` (mistakes found before torch is imported),
`build.py` and `build_data.py` (the only readers of the config), `trainer.py` (the loop), `step.py`
(encode, loss once, replay, optimizer), `chunks.py` (how a batch is cut, seeded and replayed),
`chunk_size.py` (the largest that fits), `cautions.py` (what is refused or told at start),
`strategy.py` and its two kinds `strategy_deepspeed.py`, `strategy_torch.py` (who owns parameters),
`snapshot.py` (run <-> checkpoint), `log.py`, `bad_sample_report.py` (listed by each rank, counted
over all), `preemption.py`, `run_folder.py`. May import layers 0 to 2.

`Strategy.forward` is told which forward is the step's last: DDP decides there, not in backward,
whether gradients are reduced. The last chunk keeps the graph of pass 1 and is back-propagated
first, which saves one forward in K; where towers are cut apart (`train.text_chunk_size`) the last
chunk is replayed like the others, because DDP wants every parameter in the step's last backward.

ZeRO-3 gathers the parameters once per forward and backward of a chunk, 3K - 1 times a step; the
other strategies exchange gradients once a step and parameters never.

There is one loop: a new method is a loss, an add-on or an evaluator, never a second trainer.
"""
