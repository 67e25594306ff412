"""`clipkit eval gate`: exit status, table and JUnit XML."""

from xml.etree import ElementTree as ET

import pytest
import typer
from typer.testing import CliRunner

from clipkit.cli.eval_gate import gate
from clipkit.errors import ConfigError, DataError
from tests.fixtures_results import records, store

app = typer.Typer()
app.command()(gate)


@pytest.fixture
def results(tmp_path):
    return store(tmp_path / "new", "m", records([1] * 9 + [0]))


def run(tmp_path, gates, *arguments):
    path = tmp_path / "gates.yaml"
    path.write_text(gates)
    return CliRunner().invoke(app, [str(path), *map(str, arguments)], env={"COLUMNS": "160"})


def test_green_is_status_0_and_red_1(tmp_path, results):
    good = run(tmp_path, "gates: [{metric: acc1, min: 0.9}]", results)
    assert (good.exit_code, "1 checks, 0 red" in good.stdout) == (0, True)
    bad = run(tmp_path, "gates: [{metric: acc1, min: 0.95}, {metric: acc1, max: 1}]", results)
    assert (bad.exit_code, "2 checks, 1 red" in bad.stdout) == (1, True)
    typo = run(tmp_path, "gates: [{metric: acc, min: 0}]", results)
    assert typo.exit_code == 1
    assert "did you mean" in typo.stdout


def test_names_from_data_do_not_command_the_terminal(tmp_path):
    hostile = "x\x1b[2J\r\u202e"
    own = [{"id": "1", "values": {hostile: 1.0}}]
    sides = [
        store(tmp_path / m, m, own, dataset=hostile, facts={"data_hash": m + hostile}) for m in "ab"
    ]
    text = 'gates: [{metric: "x*", max_drop: 0.1}, {metric: y, min: 0}]'
    result = run(tmp_path, text, sides[0], "--baseline", sides[1])
    assert (result.exit_code, result.stdout.count("x\ufffd[2J")) == (1, 3)
    assert "x\ufffd[2J\ufffd\ufffd/zero_shot: data_hash differs" in result.stderr
    assert not set("\x1b\r\u202e") & set(result.output)


def test_broken_results_are_no_red_gate(tmp_path, results):
    path = results / "digits.zero_shot.json"
    path.write_text(path.read_text().replace('"acc1": 0.9', '"acc1": NaN', 1))
    found = run(tmp_path, "gates: [{metric: acc1, min: 0}]", results).exception
    assert isinstance(found, DataError)
    assert found.exit_status > 1


def test_a_malformed_file_is_no_red_gate(tmp_path, results):
    found = run(tmp_path, "gates: [{metric: acc1}]", results).exception
    assert isinstance(found, ConfigError)
    assert found.exit_status == 2


def test_junit_holds_every_check(tmp_path, results):
    report = tmp_path / "ci" / "gate.xml"
    text = "gates: [{metric: acc1, min: 0.95}, {metric: acc1, max: 1}, {metric: '<x>', min: 0}]"
    assert run(tmp_path, text, results, "--junit", report).exit_code == 1
    root = ET.parse(report).getroot()
    assert (root.get("tests"), root.get("failures")) == ("3", "2")
    cases = root.findall(".//testcase")
    assert [(c.get("classname"), c.get("name")) for c in cases] == [
        ("digits.zero_shot", "acc1 min 0.95"),
        ("digits.zero_shot", "acc1 max 1"),
        ("*.*", "<x> min 0"),
    ]
    assert cases[0].find("failure").get("message").startswith("min 0.95: 0.9000 [")
    assert cases[1].find("failure") is None


def test_a_drop_against_the_given_baseline_with_its_warnings(tmp_path, results):
    baseline = store(tmp_path / "old", "o", records([1] * 11), facts={"data_hash": "x"})
    store(tmp_path / "new", "m", records([0] * 10), facts={"data_hash": "y"})
    text = "gates: [{metric: acc1, max_drop: 0.1}]"
    found = run(tmp_path, text, results, "--baseline", baseline)
    assert found.exit_code == 1
    assert "warning: digits/zero_shot: data_hash differs: x in A, y in B" in found.stderr
    assert "10 samples paired, 1 only in A" in found.stderr
    assert isinstance(run(tmp_path, text, results).exception, ConfigError)
