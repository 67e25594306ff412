"""Which tasks there are, which fit a data set, and how a command line or a file names them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from clipkit.config.parts import build_part, check_part, list_kinds, part_class, suggest
from clipkit.data.eval_sets import EvalSet, find_sets
from clipkit.errors import ClipkitError, ConfigError, DataError
from clipkit.eval.base import EvalResult
from clipkit.eval.embed import Embedder

DEFAULT = {
    "classification": "zero_shot",
    "multilabel": "multilabel",
    "retrieval": "retrieval",
    "selection": "selection",
    "mixed_search": "mixed_modality",
}


class Evaluator(Protocol):
    """Any evaluation task.

    Attributes:
        name: Of the data set, as results show it.
        reads: Types of data sets it takes (`clipkit.data.eval_sets.TYPES`).
    """

    name: str

    def check(self) -> object:
        """Open the data set; raises DataError before any time is spent."""
        ...

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        ...
