"""The engine: config -> run -> steps. Memory and distribution are owned here and nowhere else.

Lives here: `preflight.py` (mistakes found before torch is imported), `build.py` (the only reader of
the config), `trainer.py` (the loop), `step.py` (chunks, loss once, replay, optimizer),
`strategy.py` and its two kinds `strategy_deepspeed.py`, `strategy_torch.py` (who owns parameters),
`snapshot.py` (run <-> checkpoint), `log.py`, `preemption.py`. May import layers 0 to 2.

There is one loop: a new method is a loss, an add-on or an evaluator, never a second trainer.
"""
