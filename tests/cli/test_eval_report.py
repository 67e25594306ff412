"""`clipkit eval report`: from folders of results to a page, errors in one line."""

import shlex

import pytest
import typer
from typer.testing import CliRunner

from clipkit.cli.eval_report import report
from clipkit.errors import ConfigError, DataError
from tests.eval.report_results import made_up, store, zero_shot

app = typer.Typer()
app.command()(report)


def run(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_folders_and_files_become_a_page_that_says_how_it_was_made(tmp_path):
    zero_shot(tmp_path)
    other = store(tmp_path / "other place", made_up({"m": 0.5}), "kind")
    out = tmp_path / "new folder" / "page.html"
    result = run(tmp_path / "results", other.path, "--out", out, "--no-thumbnails")
    assert result.exit_code == 0, result.output
    html = out.read_text()
    assert f"{out}: 2 results, {out.stat().st_size / 1000:.0f} kB;" in result.output
    words = ["clipkit", "eval", "report", tmp_path / "results", other.path, "--out", out]
    command = shlex.join(map(str, [*words, "--no-thumbnails"]))
    assert command.replace("'", "&#39;") in html and "image/jpeg" not in html
    alone = run(tmp_path / "results", "--out", out)
    assert alone.exit_code == 0 and f"{out}: 1 result, " in alone.output
    assert "image/jpeg" in out.read_text()


def test_what_is_no_folder_of_results_is_refused(tmp_path):
    result = run(tmp_path, "--out", tmp_path / "page.html")
    assert isinstance(result.exception, DataError) and "holds no results" in str(result.exception)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("out, text", [("results", "is a folder"), ("file/x.html", "cannot be")])
def test_where_no_page_can_stand(tmp_path, out, text):
    store(tmp_path / "results", made_up({"m": 0.5}), "kind")
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "results", "--out", tmp_path / out)
    assert isinstance(result.exception, ConfigError) and text in str(result.exception)
