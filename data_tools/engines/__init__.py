"""Engines: ways to run many tasks, one per shard.

Lives here: `task.py` (what runs in a worker, the same under every engine), `process.py` (a spawn
pool on this machine, the default), `ray.py` (Ray core), `spark.py` (PySpark). May import:
`data_tools.done`, `clipkit.dist.ray`, `clipkit.errors`; Ray and PySpark only inside functions, as
both are extras.
To add one: a file with `run(tasks, workers)`, a generator that yields (number of the task, Outcome)
for each task once, in any order, also where the worker of a task died; and its line in `EXTRAS`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Generator, Sequence

from clipkit.errors import ConfigError
from data_tools.engines.task import Outcome, Task

Run = Callable[[Sequence[Task], "int | None"], Generator[tuple[int, Outcome], None, None]]
EXTRAS = {"process": "", "ray": "ray", "spark": "pyspark"}  # engine -> package that it needs


def load_engine(name: str) -> Run:
    """The `run` of an engine.

    Raises:
        ConfigError: No such engine, or its package is not installed.
    """
    if name not in EXTRAS:
        raise ConfigError(f"engine '{name}' does not exist; choose one of {', '.join(EXTRAS)}")
    package = EXTRAS[name]
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"engine '{name}' needs {package}: pip install 'clipkit[{name}]'")
    run: Run = importlib.import_module(f"data_tools.engines.{name}").run
    return run
