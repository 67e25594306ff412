"""Rows 6 and 7: cut or incomplete shards, images that are none: counted, replaced, never lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from clipkit.data.tar_index import load_index
from clipkit.dist.group import World
from tests.engine.inprocess import fit_in_pool
from tests.faults.harness import history, life, status, write_config
from tests.fixtures_shards import image_bytes, noise_bytes, write_tar

STEPS = 14  # two epochs of what is left


def cut(path: Path, sample: int, inside: bool) -> None:
    """End a shard at a sample: inside its image, or exactly between two."""
    with tarfile.open(path) as tar:
        member = tar.getmembers()[2 * sample]
    os.truncate(path, member.offset_data + member.size // 2 if inside else member.offset)


def damaged_config(folder: Path) -> Path:
    """40 + 24 + 36 samples; 10 and 12 of the first two are cut off, three others lack a text."""
    config = write_config(folder, data={"max_bad_fraction": 0.5, "workers": 0})
    train = folder / "data" / "train"
    third = train / "002.tar"
    with tarfile.open(third) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    write_tar(third, [(n, d) for i, (n, d) in enumerate(members) if i not in (1, 11, 21)])
    for path in sorted(train.glob("*.tar")):
        load_index(str(path))
    cut(train / "000.tar", 30, inside=True)
    cut(train / "001.tar", 12, inside=False)
    return config


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def fit_and_notes(world: World, config: str, overrides: list[str]) -> tuple[str, list[str]]:
    """Outcome, and what the loader of this rank says of the shards."""
    from clipkit.config.load import load_config
    from clipkit.engine.build import build_run
    from clipkit.engine.trainer import fit

    run = build_run(load_config(config, overrides), world)
    try:
        return fit(run), run.loader.notes
    finally:
        run.log.close()


def test_cut_and_incomplete_shards(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config, run = damaged_config(tmp_path), tmp_path / "runs" / "r"
    (outcome, notes), other = ranks(2).run(
        fit_and_notes, str(config), [f"train.total_steps={STEPS}"]
    )
    assert (outcome, notes) == ("done", notes) == other
    first, second, missing = notes
    assert "000.tar: cut short inside" in first and "10 of the 40 it held are missing" in first
    assert "001.tar: no end-of-archive mark" in second and "12 of the 24 it held" in second
    assert "22" in missing and "missing_samples" in missing
    assert [step for step, _, _ in history(run)] == list(range(1, STEPS + 1))
    counts = {k: v for k, v in lines_of(run)[-1].items() if k.startswith("train/bad_samples/")}
    assert (
        list(counts) == ["train/bad_samples/no_caption"]
        and counts["train/bad_samples/no_caption"] >= 3
    )
    shards = [line for line in lines_of(run) if "train/bad_shards" in line][-1]["train/bad_shards"]
    assert [Path(s["shard"]).name for s in shards] == ["002.tar"]
    listed = [json.loads(x) for p in run.glob("bad_samples.rank*.jsonl") for x in p.open()]
    assert {Path(line["shard"]).name for line in listed} == {"002.tar"}


@pytest.mark.slow
def test_over_the_limit_all_ranks_end_and_name_the_shard(tmp_path: Path) -> None:
    config = damaged_config(tmp_path)
    done = life(config, "data.max_bad_fraction=0.01")
    assert done.status != 0 and "Traceback" not in done.err.split("torch")[0]
    (told,) = [
        line for line in done.err.splitlines() if line.startswith("clipkit: ") and ".tar" in line
    ]
    assert "missing_samples" in told and "data.max_bad_fraction" in told
    found = status(tmp_path / "runs" / "r")
    assert (found["state"], found["exit_status"]) == ("failed", 3) and ".tar" in found["error"]


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def odd_images() -> dict[str, tuple[bytes, str | None]]:
    """Name -> (file, why it is no sample; None: it is one)."""
    flat = Image.new("RGB", (16, 16), (9, 90, 200))
    jpeg = image_bytes(kind="JPEG", side=32)
    return {
        "empty": (b"", "unreadable_image"),
        "text": (b"<html>404</html>", "unreadable_image"),
        "cut": (jpeg[: len(jpeg) // 3], "unreadable_image"),
        "bomb": (encoded(Image.new("1", (12000, 12000)), "PNG"), "too_many_pixels"),
        "gif": (encoded(flat, "GIF"), "unreadable_image"),
        "strip": (encoded(Image.new("L", (3000, 1)), "PNG"), "extreme_shape"),
        "pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), None),
        "cmyk": (encoded(flat.convert("CMYK"), "JPEG"), None),
        "palette": (encoded(flat.quantize(4), "PNG"), None),
        "gray": (encoded(flat.convert("L"), "JPEG"), None),
    }


def fit_and_peak(world: World, config: str, overrides: list[str]) -> tuple[str, int]:
    """Outcome, and by how many bytes the memory of this rank grew at most."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    start = _peak()
    return fit_in_pool(world, config, overrides), _peak() - start


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def test_odd_images(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config, run = write_config(tmp_path), tmp_path / "runs" / "r"
    members = []
    for i, (name, (data, _)) in enumerate(odd_images().items()):
        members += [(f"{i:06d}.png", data), (f"{i:06d}.txt", f"a {name}".encode())]
    for i in range(10, 40):
        members += [(f"{i:06d}.png", noise_bytes(i)), (f"{i:06d}.txt", f"caption {i}".encode())]
    write_tar(tmp_path / "data" / "train" / "000.tar", members)
    overrides = [f"train.total_steps={STEPS}", "data.max_bad_fraction=0.5", "data.workers=0"]
    found = ranks(2).run(fit_and_peak, str(config), overrides)
    assert [outcome for outcome, _ in found] == ["done"] * 2
    assert max(peak for _, peak in found) < 300e6, "the bomb would be 430 MB"
    last = lines_of(run)[-1]
    counts = {
        k.rpartition("/")[2]: v for k, v in last.items() if k.startswith("train/bad_samples/")
    }
    causes = [cause for _, cause in odd_images().values() if cause]
    assert set(counts) == set(causes)
    trained = [line for line in lines_of(run) if "train/loss" in line]
    assert [line["train/samples_seen"] for line in trained] == [16 * (i + 1) for i in range(STEPS)]
    listed = [json.loads(x) for p in run.glob("bad_samples.rank*.jsonl") for x in p.open()]
    assert {line["key"] for line in listed} == {
        f"{i:06d}" for i, (_, cause) in enumerate(odd_images().values()) if cause
    }
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["max_bad_fraction"] == 0.5
