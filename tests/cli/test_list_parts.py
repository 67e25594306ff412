"""`clipkit list`: kinds, arguments, defaults, docs."""

import pytest
from typer.testing import CliRunner

from clipkit.cli.main import app
from clipkit.config.parts import list_kinds
from clipkit.errors import ConfigError


@pytest.mark.parametrize(
    ("what", "room"), [("losses", "losses"), ("addons", "addons"), ("evals", "eval")]
)
def test_every_kind_is_shown_with_what_it_does(what, room):
    result = CliRunner().invoke(app, ["list", what])
    assert result.exit_code == 0
    for kind in list_kinds(room):
        assert kind in result.output


def test_arguments_with_type_default_and_text():
    output = " ".join(CliRunner().invoke(app, ["list", "addons"]).output.split())
    assert "decay: float = 0.9999 Weight of the past" in output


def test_unknown_room():
    result = CliRunner().invoke(app, ["list", "loses"])
    assert isinstance(result.exception, ConfigError)
    assert "did you mean 'losses'?" in str(result.exception)
