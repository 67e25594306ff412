"""img2dataset's folders: members stay, what failed or got lost is counted."""

import json
from pathlib import Path

import pytest

from clipkit.data.shard_reader import iter_samples
from clipkit.data.tar_index import build_index
from clipkit.errors import DataError
from data_tools.build.run import build
from data_tools.tables import read_table, write_table
from tests.fixtures_shards import noise_bytes, write_tar


def write_source(root: Path) -> Path:
    for shard in range(2):
        members, status = [], []
        for i in range(4):
            failed = (shard, i) == (0, 2)
            status.append("failed_to_download" if failed else "success")
            if not failed:
                key = f"{shard:05d}{i:04d}"
                members += [(f"{key}.jpg", noise_bytes(i, "JPEG")), (f"{key}.txt", b"t")]
                members += [(f"{key}.json", b'{"sha256": "x"}')]
        write_tar(root / f"{shard:05d}.tar", members)
        columns = {
            "url": [f"http://x/{i}" for i in range(4)],
            "key": [f"{shard:05d}{i:04d}" for i in range(4)],
            "status": status,
            "error_message": [None if s == "success" else "HTTP Error 404" for s in status],
        }
        write_table(root / f"{shard:05d}.parquet", columns)
    (root / "00000_stats.json").write_text(json.dumps({"count": 4, "successes": 3}))
    (root / "00001_stats.json").write_text(json.dumps({"count": 4, "successes": 6}))
    return root


def test_shards_are_recut_and_failures_counted(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "in"), tmp_path / "out"
    facts = build(source, out, samples_per_shard=5)
    assert facts["samples"] == 7
    assert facts["counts"]["failed downloads"] == 1 and facts["counts"]["lost since"] == 2
    assert facts["counts"]["shards without end mark"] == 0
    rejects = read_table(out / "rejects.parquet").to_pylist()
    assert rejects == [
        {
            "shard": "00000.tar", "key": "000000002", "image": "http://x/2",
            "cause": "failed_to_download", "detail": "HTTP Error 404",
        }
    ]  # fmt: skip
    samples = [
        sample
        for path in sorted(out.glob("*.tar"))
        for sample in iter_samples(build_index(str(path)))
    ]
    assert [s.key for s in samples][:4] == ["000000000", "000000001", "000000003", "000010000"]
    assert samples[2].members["jpg"] == noise_bytes(3, "JPEG")
    (source / "00001_stats.json").unlink()
    facts = build(source, out, samples_per_shard=5)
    assert facts["done_before"] == 2 and facts["counts"]["shards without end mark"] == 1
    assert json.loads((out / "summary.json").read_text())["tool"] == "build"


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no"):
        build(tmp_path, tmp_path / "out", kind="img2dataset")
