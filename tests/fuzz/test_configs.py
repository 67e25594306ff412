"""Config files and overrides: read, complete and harmless, or one line."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clipkit.config.load import dump_config, load_config
from clipkit.config.schema import RunConfig
from clipkit.engine.preflight import preflight
from tests.fixtures_model import ARCH
from tests.fixtures_shards import write_shards
from tests.fuzz.bounds import bounds, cases, folder_of_its_own, some_or_many
from tests.fuzz.mutations import ODD_TEXTS, VALUES, changed, damaged

TEXT = """\
run: {dir: runs, name: r, seed: 1}
model: {arch: arch.json, lock: [image]}
data:
  train: ["data/{000..001}.tar"]
  workers: 0
  views: {small: {size: 8, crop_scale: [0.1, 0.5]}}
  eval: {set: data}
loss: [{kind: infonce, weight: 1.0}, {kind: siglip}]
addons: [{kind: ema, decay: 0.9}]
optim: &o {lr: 1.0e-3, beta1: 0.9}
train: {total_steps: 2, global_batch_size: 4, chunk_size: 2}
engine: {strategy: deepspeed, zero_stage: 2}
deepspeed: {zero_optimization: {reduce_scatter: true}}
eval: {every: 1, tasks: [{kind: zero_shot, data: set}]}
checkpoint: {every: 1, keep: 2, best: set/acc1}
guard: {spike: skip}
"""
TREE: dict[str, Any] = yaml.safe_load(TEXT)
PIECES = st.sampled_from(
    ["&a ", "*a", "*o", "<<: ", "!!python/object/apply:os.system [touch x]", "!!binary ", "!!set ",
     "!!timestamp ", "- ", ": ", "{", "}", "[", "]", "|", ">", "'", '"', "# ", "%YAML 9\n", "---\n",
     "...\n", "? ", "\t", "\n", "2001-99-99", "0x", "1e400", ".nan", "null", "~", "${HOME}",
     "${A B}",
     "${NOT_SET}", "{000..999999}", "{a,b}" * 30, "pipe:touch x", "\ufeff", "1" * 5000, "[" * 500]
)  # fmt: skip


def paths_of(model: Any, prefix: str = "") -> list[str]:
    """Every dotted key of the schema."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        if hasattr(field.annotation, "model_fields"):
            found += paths_of(field.annotation, f"{prefix}{name}.")
    return found


KEYS = paths_of(RunConfig)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """The config with pieces of YAML thrown in."""
    text = TEXT
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text)))
        until = min(len(text), place + draw(st.integers(0, 20)))
        text = text[:place] + draw(PIECES | st.text(max_size=5)) + text[until:]
    return text


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """key=value, of a known key or not."""
    key = draw(st.sampled_from(KEYS) | st.text(string.printable, max_size=12))
    tail = draw(st.sampled_from(["", "", ".0", ".1.weight", ".x", "..", ".-1"]))
    as_text = st.sampled_from(["0", "-1", "x", "[]", "{}", "null", "1e400", "[1,2]", "{a: b}", ""])
    value = draw(as_text | PIECES | ODD_TEXTS | VALUES.map(lambda v: json.dumps(v)))
    return f"{key}{tail}={value}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data and the architecture that the config names; the current one."""
    write_shards(tmp_path / "data", [4, 4])
    (tmp_path / "arch.json").write_text(json.dumps(ARCH))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def check(folder: Path, content: bytes, given_overrides: list[str]) -> None:
    """Read, check, and write what was read; it reads back the same."""
    path = folder / "run.yaml"
    path.write_bytes(content)
    with bounds(folder):
        config = load_config(path, given_overrides)
        text = dump_config(config)
        assert yaml.safe_load(text)["run"]["seed"] == config.run.seed
        preflight(config)
    assert not os.path.exists("x"), "a command of the config was run"


@some_or_many(40, 1000)
def test_text(place: Path, count: int) -> None:
    @cases(count)
    @given(texts())
    def one(text: str) -> None:
        check(place, text.encode("utf-8", "surrogatepass"), [])

    one()


@some_or_many(20, 500)
def test_bytes(place: Path, count: int) -> None:
    @cases(count)
    @given(damaged(TEXT.encode()))
    def one(content: bytes) -> None:
        check(place, content, [])

    one()


@some_or_many(60, 1500)
def test_values(place: Path, count: int) -> None:
    @cases(count)
    @given(changed(TREE))
    def one(tree: Any) -> None:
        check(place, json.dumps(tree).encode(), [])

    one()


@some_or_many(60, 1500)
def test_overrides(place: Path, count: int) -> None:
    @cases(count)
    @given(st.lists(overrides(), min_size=1, max_size=3))
    def one(found: list[str]) -> None:
        check(place, TEXT.encode(), found)

    one()


def test_aliases_that_unfold_to_more_than_memory(place: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    merges = ["a0: &a0 {k: 1}"]
    merges += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10)]
    for text in (
        "\n".join(lines) + "\ndata: {train: *a11}\n",
        "data: &d {train: *d}\n",
        "\n".join(merges),
    ):
        check(folder_of_its_own(place), text.encode(), [])
