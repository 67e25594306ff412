"""PySpark jobs: on this machine, or under the master that SPARK_MASTER or spark.master names.

One job per shard, so that a shard whose worker dies fails alone. On a cluster clipkit must be
installed on every node, and shards and output folder must be on storage that all nodes share under
the same paths.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from clipkit.errors import ConfigError
from data_tools.engines.task import Outcome, Task, run_task


def run(tasks: Sequence[Task], workers: int | None) -> Generator[tuple[int, Outcome], None, None]:
    """(number, outcome) of each task as it is done; `workers` defaults to the slots Spark knows of.

    Raises:
        ConfigError: Spark does not start.
    """
    from pyspark import SparkContext

    ours = SparkContext._active_spark_context is None
    spark = _start(workers) if ours else SparkContext.getOrCreate()
    pool = ThreadPoolExecutor(min(len(tasks) or 1, workers or spark.defaultParallelism))
    try:
        futures = {pool.submit(_job, spark, task): n for n, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if ours:
            spark.stop()


def _job(spark: Any, task: Task) -> Outcome:
    try:
        outcome: Outcome = spark.parallelize([task], 1).map(run_task).collect()[0]
        return outcome
    except Exception as error:  # its worker died; py4j wraps that in a page of Java
        return Outcome(error=_reason(str(error)))


def _reason(text: str) -> str:
    """The root cause of a Java error."""
    causes = [line for line in text.splitlines() if "Exception: " in line] or [text.strip()]
    return (causes[-1].partition("Exception: ")[2] or causes[-1]).split(". ")[0][:200]


def _start(workers: int | None) -> Any:
    from pyspark import SparkConf, SparkContext

    conf = SparkConf().setAppName("clipkit-data").set("spark.ui.enabled", "false")
    conf.set("spark.ui.showConsoleProgress", "false")
    here = f"local[{workers or len(os.sched_getaffinity(0))}]"
    master = os.environ.get("SPARK_MASTER") or conf.get("spark.master", here) or here
    conf.setMaster(master)
    if master.startswith("local"):
        conf.set("spark.driver.bindAddress", "127.0.0.1").set("spark.driver.host", "127.0.0.1")
        conf.setExecutorEnv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        with _silent_children():
            spark = SparkContext(conf=conf)
    except Exception as error:
        raise ConfigError(f"Spark does not start with master '{master}': {_reason(str(error))}; "
                          f"is Java 17 or newer installed?") from None  # fmt: skip
    spark.setLogLevel("OFF")
    return spark


@contextmanager
def _silent_children() -> Iterator[None]:
    """What a process that is started in this block writes to stderr is dropped.

    Java has greetings that no setting of Spark's turns off.
    """
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
