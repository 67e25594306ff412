"""`clipkit search`: table, JSON and sheet say the same; only the index's own weights are taken."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import clipkit
from clipkit.cli.embed import embed
from clipkit.cli.search import _told_apart, search
from clipkit.dist import group
from clipkit.errors import CheckpointError, ConfigError, DataError
from tests.fixtures_shards import noise_bytes, write_tar
from tests.fixtures_trained import write_trained_run

HOSTILE = "<script>alert(1)</script> [red]x[/red] \x1b[31mred"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, its export, shards whose third caption is hostile, and an index of them."""
    root = tmp_path_factory.mktemp("search")
    write_trained_run(root / "run")
    for shard in range(2):
        members = []
        for i in range(4 * shard, 4 * shard + 4):
            caption = HOSTILE if i == 2 else f"thing number {i}"
            members += [(f"{i}.png", noise_bytes(i, side=32)), (f"{i}.txt", caption.encode())]
        write_tar(root / "shards" / f"{shard}.tar", members)
    invoke(embed, root / "run", root / "shards", root / "index", "--no-cache")
    return root


@pytest.fixture
def index(place, tmp_path):
    return shutil.copytree(place / "index", tmp_path / "index")


def invoke(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    found = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    group.teardown()
    return found


def rows_of(result):
    assert result.exit_code == 0, result.output + repr(result.exception)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_text_query_against_the_models_own_features(place, index):
    found = rows_of(invoke(search, index, "a red circle", "--json", "--top", 3))
    model, _, tokenizer = clipkit.load(place / "run")
    query = model.encode_text(tokenizer(["a red circle"])).detach().numpy()[0].astype(np.float64)
    stored = np.load(index / "img_emb" / "img_emb_0.npy").astype(np.float64)
    cosines = stored @ query / np.linalg.norm(query) / np.linalg.norm(stored, axis=1)
    order = np.argsort(-cosines)[:3]
    assert [r["key"] for r in found] == [str(i) for i in order]
    np.testing.assert_allclose([r["score"] for r in found], cosines[order], atol=1e-5)
    assert [r["rank"] for r in found] == [1, 2, 3]
    assert found[0]["shard"] == str(place / "shards" / f"{order[0] // 4}.tar")
    assert not (index / "search.html").exists()


def test_an_image_and_a_caption_find_themselves(place, index, tmp_path):
    (tmp_path / "query.png").write_bytes(noise_bytes(5, side=32))
    (best, *_) = rows_of(invoke(search, index, "--image", tmp_path / "query.png", "--json"))
    assert best["key"] == "5" and abs(best["score"] - 1) < 1e-4
    (best, *_) = rows_of(invoke(search, index, "thing number 6", "--on", "text", "--json"))
    assert best["key"] == "6" and abs(best["score"] - 1) < 1e-4


def test_table_and_sheet(place, index, tmp_path):
    result = invoke(search, index, "a <b>query</b>", "--top", 99)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout and "thing number 7" in result.stdout
    assert "[red]x[/red]" in result.stdout.replace("\n", "")
    assert str(index / "search.html") in result.stderr.replace("\n", "")
    page = (index / "search.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8 and "a &lt;b&gt;query&lt;/b&gt;" in page
    assert "<script>" not in page and "&lt;script&gt;" in page
    (tmp_path / "query.png").write_bytes(noise_bytes(5, side=32))
    sheet = tmp_path / "deep" / "sheet.html"
    options = ("--image", tmp_path / "query.png", "--html", sheet, "--json", "--top", 2)
    assert len(rows_of(invoke(search, index, *options))) == 2
    assert sheet.read_text().count("data:image/jpeg;base64,") == 3


@pytest.mark.parametrize(
    "paths, shown",
    [
        (["/d/a/0.tar", "/d/a/1.tar"], ["0.tar", "1.tar"]),
        (["/d/a/0.tar", "/d/b/0.tar", "/d/a/1.tar"], ["a/0.tar", "b/0.tar", "a/1.tar"]),
        (["a/0.tar", "/a/0.tar"], ["a/0.tar", "/a/0.tar"]),
        (["a//0.tar", "a/0.tar"], ["0.tar", "0.tar"]),
        ([], []),
    ],
)
def test_shards_of_equal_names_are_told_apart_by_their_folders(paths, shown):
    assert _told_apart(paths) == dict(zip(paths, shown))


def test_the_table_names_shards_by_as_much_as_tells_them_apart(place, index):
    import pyarrow
    import pyarrow.parquet as parquet

    table = index / "metadata" / "metadata_0.parquet"
    rows = parquet.read_table(table).to_pydict()
    rows["shard"] = [s.replace("/1.tar", "/b/0.tar") for s in rows["shard"]]
    parquet.write_table(pyarrow.table(rows), table)
    result = invoke(search, index, "x")
    assert result.exit_code == 0 and "b/0.tar" in result.stdout
    assert "shards/0.tar" in result.stdout


def test_missing_shards_are_said_on_the_sheet(place, index):
    table = index / "metadata" / "metadata_0.parquet"
    import pyarrow
    import pyarrow.parquet as parquet

    rows = parquet.read_table(table).to_pydict()
    rows["shard"] = [s.replace("/1.tar", "/gone.tar") for s in rows["shard"]]
    parquet.write_table(pyarrow.table(rows), table)
    assert invoke(search, index, "x").exit_code == 0
    page = (index / "search.html").read_text()
    assert page.count("its shard cannot be read") == 4 and page.count("data:image") == 4


def test_an_index_that_cannot_be_written_still_answers(index):
    (index / "search.html").mkdir()
    result = invoke(search, index, "x")
    assert result.exit_code == 0 and "thing number 1" in result.stdout
    assert "warning" in result.stderr and "--html" in result.stderr
    result = invoke(search, index, "x", "--html", index / "search.html")
    assert isinstance(result.exception, ConfigError) and "--html" in str(result.exception)


def test_only_the_weights_of_the_index(place, index, tmp_path):
    clipkit.export(place / "run", tmp_path / "same")
    same = invoke(search, index, "x", "--json", "--checkpoint", tmp_path / "same")
    assert rows_of(same) == rows_of(invoke(search, index, "x", "--json"))
    facts = json.loads((index / "index.json").read_text())
    facts["weights_hash"] = "0" * 64
    (index / "index.json").write_text(json.dumps(facts))
    result = invoke(search, index, "x", "--json")
    assert isinstance(result.exception, CheckpointError)
    assert "weights are not those" in str(result.exception)
    allowed = invoke(search, index, "x", "--json", "--allow-other-weights")
    assert rows_of(allowed) == rows_of(same)
    facts["checkpoint"] = str(tmp_path / "moved")
    (index / "index.json").write_text(json.dumps(facts))
    result = invoke(search, index, "x")
    assert isinstance(result.exception, CheckpointError) and "--checkpoint" in str(result.exception)
    stored = index / "img_emb" / "img_emb_0.npy"
    np.save(stored, np.load(stored)[:, :5])
    (index / "index.json").write_text(json.dumps({**facts, "dim": 5}))
    options = ("--checkpoint", place / "run", "--allow-other-weights")
    result = invoke(search, index, "x", *options)
    assert "dimension 5, the checkpoint gives 8" in str(result.exception)


def test_refusals(place, index, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    for arguments, kind, words in (
        ((tmp_path / "absent", "x"), DataError, "no index there"),
        ((index, ""), ConfigError, "empty"),
        ((index, "  "), ConfigError, "empty"),
        ((index,), ConfigError, "--image"),
        ((index, "x", "--image", tmp_path / "bad.png"), ConfigError, "either"),
        ((index, "--image", tmp_path / "bad.png"), DataError, "bad.png"),
        ((index, "x", "--on", "sound"), ConfigError, "sound"),
    ):
        result = invoke(search, *arguments)
        assert isinstance(result.exception, kind), (arguments, result.exception)
        assert words in str(result.exception) and "\n" not in str(result.exception)
    facts = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps({**facts, "text": False}))
    result = invoke(search, index, "x", "--on", "text")
    assert isinstance(result.exception, DataError) and "no captions" in str(result.exception)
