"""Evaluation: features once, tasks that read them, and what is done with their results.

- the one embedding pass and its cache on disk: `embed.py`, `feature_cache.py`
- what a task returns, and its intervals: `base.py` (EvalResult, records), `intervals.py`
- tasks, one file each, file name = kind: `zero_shot.py`, `retrieval.py`, `selection.py`, ...
- what tasks share: `classification.py`, `logistic.py`, `probe_texts.py`, `geometry.py`,
  `reliability.py`, `wdiscood.py`, `shifts.py`, `subset.py`
- which tasks fit a set; many tasks on a model; is a set whole: `tasks.py`, `suite.py`,
  `validate.py`
- results on disk and as tables: `results.py`, `table.py`
- two models side by side; floors and drops for CI: `compare.py`, `paired.py`, `gate.py`, `junit.py`
- the HTML report: `report*.py`, `report.html.j2`, `plots.py`, `thumbnails.py`, `plain_text.py`
- folders of embeddings, and search in them: `embedding_*.py`, `contact_sheet.py`
- modality means fitted on a set, for `clipkit calibrate`: `modality_means.py`

To add a task: a file that ends with `PART = TheClass`. The class names the types of data sets it
`reads`, takes the data folder and name before the `*` and its YAML arguments after it, opens its
data in `check()` and answers `run(embedder) -> EvalResult`, the same on every rank. Give one record
per sample; metrics, intervals, comparison and gates follow from the records. Scores are compared
in fp32 or better, strictly: a tie counts against the model (in an AUROC, where one says so, half).
May import layers 0 and 1; needs neither deepspeed, wandb nor faiss.
"""
