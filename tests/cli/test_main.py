"""The command line itself: names, help in an instant, errors in one line."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from clipkit.cli import main as main_module
from clipkit.cli.main import app, main
from clipkit.errors import CheckpointError, ClipkitError, ConfigError, DataError


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from clipkit.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'open_clip', 'deepspeed', 'wandb', 'pandas'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout + done.stderr
    for command in ("train", "eval", "export", "verify", "list"):
        assert command in done.stdout


@pytest.mark.parametrize("command", [["train"], ["eval", "run"], ["export"], ["verify"], ["list"]])
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output


@pytest.mark.parametrize(
    ("error", "status"), [(ClipkitError, 2), (ConfigError, 2), (DataError, 3), (CheckpointError, 4)]
)
def test_errors_of_users_are_one_line_and_a_status(monkeypatch, capsys, error, status):
    def fail():
        raise error("the thing is wrong")

    monkeypatch.setattr(main_module, "app", fail)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status
    assert capsys.readouterr().err == "clipkit: the thing is wrong\n"


def test_our_own_errors_keep_their_traceback(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(main_module, "app", fail)
    with pytest.raises(ZeroDivisionError):
        main()
