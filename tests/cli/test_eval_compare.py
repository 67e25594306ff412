"""`clipkit eval compare`: the table, the JSON, the warnings, and errors that are the user's."""

import io
import json

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from clipkit.cli.eval_compare import compare, comparison_table
from clipkit.errors import ConfigError
from clipkit.eval.compare import compare as compare_places
from tests.fixtures_results import records, store

app = typer.Typer()
app.command()(compare)


@pytest.fixture
def places(tmp_path):
    more = {"metrics": {"ece": 0.1}, "intervals": {"ece": (0.0, 0.2)}}
    classes = {"class": ["[red]odd"] * 20 + ["even"] * 20}
    a = store(tmp_path, "a", records([1] * 40, **classes), facts={"data_hash": "x"}, **more)
    b = store(
        tmp_path, "b", records([0] * 20 + [1] * 20, **classes), facts={"data_hash": "y"}, **more
    )
    return str(a), str(b)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def shown(found, width=180):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison_table(found, width))
    return console.export_text()


def test_the_table_says_what_is_real(places):
    text = shown(compare_places(*places))
    (line,) = [row for row in text.splitlines() if "acc1" in row]
    for cell in (
        "40",
        "1.0000",
        "0.5000",
        "-0.5000",
        "[-0.6",
        "20 / 0",
        "<0.001",
    ):
        assert cell in line
    assert line.rstrip().endswith("worse")
    (line,) = [row for row in text.splitlines() if "ece" in row]
    assert "A [0.0000, 0.2000]" in line
    assert line.rstrip().endswith("overlap")
    assert "McNemar" in text
    assert "Holm corrects it within a family" in " ".join(text.split())
    assert "A: a   B: b" in text


def test_names_from_data_do_not_command_the_terminal(tmp_path):
    hostile = "x\x1b[2J\r\u202e"
    own = [{"id": "1", "values": {hostile: 1.0}, "class": hostile}]
    a, b = (
        store(tmp_path, model, own, dataset=hostile, facts={hostile: model, "model_name": hostile})
        for model in "ab"
    )
    result = run(a, b, "--by", "class")
    assert result.exit_code == 0
    assert result.stdout.count("x\ufffd[2J\ufffd\ufffd") == 5  # title, section, metric, part
    assert "x\ufffd[2J\ufffd\ufffd differs: a in A" in result.stderr
    assert not set("\x1b\r\u202e") & set(result.output)


def test_a_row_for_each_class_with_names_as_they_are(places):
    text = shown(compare_places(*places, by="class"))
    lines = [line.split()[0] for line in text.splitlines() if line.strip()]
    start = lines.index("acc1")
    assert lines[start : start + 3] == ["acc1", "[red]odd", "even"]
    assert "[red]odd" not in shown(compare_places(*places))


@pytest.mark.parametrize("width", [80, 110])
def test_a_narrow_screen_breaks_no_name_number_or_verdict(tmp_path, width):
    name, kind = "image_retrieval_median_rank", "out_of_distribution"
    sides = []
    for model, right in (("a", [0] * 40), ("b", [1] * 40)):
        own = [{"id": str(i), "values": {name: r, "acc1": r}} for i, r in enumerate(right)]
        more = {"metrics": {"ece": 0.1}, "intervals": {"ece": (0.01, 0.2)}}
        sides.append(store(tmp_path, model, own, dataset="imagenet-sketch", kind=kind, **more))
    text = shown(compare_places(*sides), width)
    words = text.split()
    for word in (name, "acc1", kind, "+1.0000", "<0.001", "worse", "better", "overlap", "0.2000]"):
        assert word in words, text
    assert text.count(kind) == 1
    assert max(map(len, text.splitlines())) <= width
    assert ("only A / B" in text.split("imagenet")[0]) == (width == 110)


def test_tie_rates_are_shown_where_there_are_ties(tmp_path):
    sides = []
    for model, ties in (("a", 0), ("b", 3)):
        own = [
            {"id": str(i), "values": {"tie_rate": float(i < ties), "acc1": 0.0}} for i in range(9)
        ]
        sides.append(store(tmp_path, model, own))
    for a, b, there in ((0, 0, False), (0, 1, True), (1, 0, True)):
        text = shown(compare_places(sides[a], sides[b]))
        assert (("tie_rate" in text), "acc1" in text) == (there, True)


def test_the_command_prints_warns_and_writes(places, tmp_path):
    out = tmp_path / "new" / "rows.json"
    result = run(*places, "--json", out, "--by", "class")
    assert result.exit_code == 0
    assert "worse" in result.stdout
    assert "clipkit: warning: digits/zero_shot: data_hash differs: x in A, y in B" in result.stderr
    rows = json.loads(out.read_text(), parse_constant=pytest.fail)["rows"]
    assert [(r["metric"], r["part"], r["verdict"]) for r in rows] == [
        ("acc1", "", "worse"),
        ("acc1", "[red]odd", "worse"),
        ("acc1", "even", "-"),
        ("ece", "", "overlap"),
    ]
    assert rows[0]["interval"][1] < 0 < rows[0]["p_holm"] < 0.05


def test_a_file_that_cannot_be_written(places, tmp_path):
    (tmp_path / "file").write_text("")
    found = run(*places, "--json", tmp_path / "file" / "x.json").exception
    assert isinstance(found, ConfigError)
    assert "cannot be written" in str(found)


def test_several_models_at_a_place(places, tmp_path):
    found = run(tmp_path, places[1]).exception
    assert isinstance(found, ConfigError)
    assert "name one" in str(found)
