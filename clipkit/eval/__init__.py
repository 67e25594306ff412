"""Evaluation: the one embedding pass, and tasks that read its features.

Lives here: `embed.py` (images and texts -> features, dealt over ranks in whole batches, so the
result does not depend on the world size), `zero_shot.py`, `retrieval.py`, `base.py` (EvalResult),
`tasks.py` (a folder -> its task), `table.py`. A task is a file that ends with `PART = TheClass`; it
gets the data folder before the `*`, its YAML arguments after it, and answers `run(model, world)`.
May import layers 0 and 1; needs neither deepspeed nor wandb.
"""
