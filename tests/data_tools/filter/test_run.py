"""A run writes what its rules leave, in the order they are stated, and the same bytes each time."""

import json
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import ConfigError, DataError
from data_tools.filter.run import Rules, filter_tables
from data_tools.tables import read_keep, read_table
from tests.data_tools.filter.pools import write_samples
from tests.eval.test_embedding_folder import write_folder

CAPTIONS = [f"a {'cat' if i % 2 else 'dog'} {i}" for i in range(40)]


def numbers(out: Path) -> list[int]:
    """Numbers of the samples that a keep-list of two dealt shards holds, sorted."""
    kept = read_keep(out / "keep.parquet")
    return sorted(2 * row + int(shard[0]) for shard, (rows, _) in kept.items() for row in rows)


def embed(root: Path, scores: np.ndarray) -> Path:
    """Embeddings of all samples, shard by shard, with these cosines by number."""
    import pyarrow
    import pyarrow.parquet as parquet

    from clipkit.eval.embedding_folder import metadata_path

    order = [*range(0, len(scores), 2), *range(1, len(scores), 2)]
    images = np.tile([1.0, 0.0], (len(scores), 1))
    texts = np.stack([scores, np.sqrt(1 - scores**2)], 1)[order]
    write_folder(root, images, texts, shards=[{"path": f"/d/{s}.tar"} for s in "01"])
    columns = {
        "key": [f"k{i}" for i in order],
        "caption": [CAPTIONS[i] for i in order],
        "has_caption": [True] * len(order),
        "shard": [f"/d/{i % 2}.tar" for i in order],
        "sample": [i // 2 for i in order],
    }
    parquet.write_table(pyarrow.table(columns), metadata_path(root, 0))
    return root


def test_stages_follow_each_other(tmp_path: Path) -> None:
    tables = write_samples(tmp_path / "tables", CAPTIONS)
    scores = np.random.default_rng(0).permutation(40) / 41
    (tmp_path / "entries.txt").write_text("cat\n")
    rules = Rules(
        where="width >= 20", emb=embed(tmp_path / "emb", scores), top_fraction=0.5,
        balance=tmp_path / "entries.txt", random=0.5,
    )  # fmt: skip
    out = tmp_path / "out"
    facts = filter_tables([tables], out, rules)
    best = sorted(range(20, 40), key=lambda i: -scores[i])[:10]
    cats = [i for i in best if i % 2]
    counts = facts["counts"]
    assert list(counts) == ["samples", "where", "score", "balance", "random", "kept"]
    assert (counts["samples"], counts["where"], counts["score"]) == (40, 20, 10)
    assert counts["balance"] == len(cats) and counts["random"] == int(len(cats) / 2 + 0.5)
    assert set(numbers(out)) < set(cats) and len(numbers(out)) == counts["kept"]
    assert {p.name for p in out.iterdir()} == {
        "keep.parquet", "scores.parquet", "balance.parquet", "summary.json"
    }  # fmt: skip
    assert json.loads((out / "summary.json").read_text())["counts"] == counts
    table = read_table(out / "scores.parquet")
    assert table.column_names == ["shard", "row", "key", "clip_score"] and len(table) == 40
    # its scores can be asked for later
    again = Rules(where="clip_score > 0.5")
    filter_tables([tables, out / "scores.parquet"], tmp_path / "b", again)
    assert numbers(tmp_path / "b") == [i for i in range(40) if scores[i] > 0.5]


def test_the_same_rules_give_the_same_bytes(tmp_path: Path) -> None:
    tables = write_samples(tmp_path / "tables", CAPTIONS)
    (tmp_path / "entries.txt").write_text("cat\ndog\n")
    rules = Rules(balance=tmp_path / "entries.txt", t=10, random=0.5)
    for out in ("a", "b"):
        filter_tables([tables], tmp_path / out, rules)
    for name in ("keep.parquet", "balance.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # on top of what is there
    filter_tables([tables], tmp_path / "a", rules)
    assert (tmp_path / "a/keep.parquet").read_bytes() == (tmp_path / "b/keep.parquet").read_bytes()
    filter_tables([tables], tmp_path / "c", Rules(random=0.5, seed=1))
    filter_tables([tables], tmp_path / "d", Rules(random=0.5))
    filter_tables([tables], tmp_path / "e", Rules(random=0.25))
    c, d, e = (numbers(tmp_path / n) for n in "cde")
    assert len(c) == len(d) == 20 and c != d and set(e) < set(d)


def test_tables_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    tables, out = write_samples(tmp_path / "tables", CAPTIONS), tmp_path / "out"
    (tmp_path / "entries.txt").write_text("cat\n")
    emb = embed(tmp_path / "emb", np.arange(40) / 41)
    filter_tables([tables], out, Rules(emb=emb, min_score=0, balance=tmp_path / "entries.txt"))
    assert (out / "scores.parquet").exists() and (out / "balance.parquet").exists()
    scores = out / "scores.parquet"
    filter_tables([tables, scores], out, Rules(where="clip_score > 0.5"))
    assert scores.exists() and not (out / "balance.parquet").exists()  # inputs stay
    (out / "mine.parquet").touch()
    filter_tables([tables], out, Rules(where="true"))
    assert {p.name for p in out.iterdir()} == {"keep.parquet", "summary.json", "mine.parquet"}


def test_a_keep_list_is_a_table_too(tmp_path: Path) -> None:
    tables = write_samples(tmp_path / "tables", CAPTIONS)
    filter_tables([tables], tmp_path / "a", Rules(where="width < 10"))
    keep = tmp_path / "a" / "keep.parquet"
    facts = filter_tables([tables, keep], tmp_path / "b", Rules(where="width >= 8"))
    assert numbers(tmp_path / "b") == [8, 9] and facts["counts"]["samples"] == 10


def test_dry_run_and_limit(tmp_path: Path) -> None:
    tables = write_samples(tmp_path / "tables", CAPTIONS)
    facts = filter_tables([tables], tmp_path / "out", Rules(where="width < 10"), dry_run=True)
    assert facts["counts"] == {"samples": 40, "where": 10} and not (tmp_path / "out").exists()
    facts = filter_tables([tables], tmp_path / "out", Rules(where="width < 10"), limit=3)
    assert facts["counts"]["samples"] == 3 and numbers(tmp_path / "out") == [0, 2, 4]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(), "at least one"),
        (Rules(emb=Path("e")), "just one of --top-fraction and --min-score"),
        (Rules(emb=Path("e"), top_fraction=0.5, min_score=0.1), "just one"),
        (Rules(top_fraction=0.5), "need --emb"),
        (Rules(min_score=0.0), "need --emb"),
        (Rules(random=0.0), "--random 0.0"),
        (Rules(emb=Path("e"), top_fraction=1.5), "--top-fraction 1.5"),
        (Rules(random=0.5, t=0), "--t 0"),
    ],
)
def test_rules_must_fit(tmp_path: Path, rules: Rules, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        filter_tables([tmp_path], tmp_path / "out", rules)


def test_errors_name_the_thing(tmp_path: Path) -> None:
    tables = write_samples(tmp_path / "tables", CAPTIONS)
    for rules, message in (
        (Rules(where="cast(key as integer) > 1"), "Could not convert"),
        (Rules(emb=tmp_path, min_score=0.1), "no index there"),
        (Rules(balance=tmp_path / "absent"), "absent"),
    ):
        with pytest.raises(DataError, match=message) as error:
            filter_tables([tables], tmp_path / "out", rules)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out" / "keep.parquet").exists()
    table = read_table(tables).drop_columns("caption")
    from data_tools.tables import write_table

    write_table(tmp_path / "n.parquet", dict(zip(table.column_names, table.columns)))
    (tmp_path / "e.txt").write_text("cat\n")
    with pytest.raises(DataError, match="column 'caption'"):
        filter_tables([tmp_path / "n.parquet"], tmp_path / "o", Rules(balance=tmp_path / "e.txt"))
