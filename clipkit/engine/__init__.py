"""The engine: config -> run -> steps. Memory and distribution are owned here and nowhere else.

Lives here: `preflight.py` and `train_files.py` (mistakes found before torch is imported),
`build.py`, `build_data.py` and `build_records.py` (the only readers of the config), `run.py` (what
they put together), `trainer.py` (the loop), `step.py` (encode, loss once, replay, optimizer),
`chunks.py` (how a batch is cut, seeded and replayed), `chunk_size.py` (the largest that fits),
`evaluation.py`, `guard.py` (which batch is skipped) and `rollback.py` (back to good weights),
`cautions.py` (what is refused or told at start), `strategy.py` and its two kinds
`strategy_deepspeed.py`, `strategy_torch.py` (who owns parameters), `saving.py` (when, and from what
a run goes on) and `snapshot.py` (run <-> checkpoint), `preemption.py` (signals), `run_folder.py`,
`compile_lock.py`. What people see: `report.py` and `pace.py` (of a step), `log.py` over
`json_lines.py` and `wandb_sink.py`, `status.py` (written) and `standing.py` (read),
`bad_sample_report.py`. May import layers 0 to 2.

A batch that is not finite, or whose loss jumps, is judged between the step's all-reduce and the
replay, by numbers that all ranks have alike: all skip it, and weights, moments and add-ons stay as
they are. After a roll-back the weights are older, the step counter and the data position are not:
order = f(step) holds for every history.

`Strategy.forward` is told which forward is the step's last: DDP decides there, not in backward,
whether gradients are reduced. The last chunk keeps the graph of pass 1 and is back-propagated
first, which saves one forward in K; where towers are cut apart (`train.text_chunk_size`) the last
chunk is replayed like the others, because DDP wants every parameter in the step's last backward.

ZeRO-3 gathers the parameters once per forward and backward of a chunk, 3K - 1 times a step; the
other strategies exchange gradients once a step and parameters never.

There is one loop: a new method is a loss, an add-on or an evaluator, never a second trainer.
"""
