"""File name = kind, keyword-only signature = schema; kinds from outside need to be allowed."""

import sys

import pytest

from clipkit.config.parts import build_part, check_part, list_kinds, read_part, suggest
from clipkit.errors import ConfigError

SOURCE = '''"""A loss from outside."""
raise_on_import = 1 / {divisor}

class OwnLoss:
    """Does something else.

    Args:
        given: Not from YAML.
        margin: How far apart,
            at least.
        mode (str): Which way.
    """

    def __init__(
        self, given, *, margin: float, mode: Literal["a", "b"] = "a", steps: int | None = None
    ) -> None:
        self.arguments = (given, margin, mode, steps)

PART = OwnLoss
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    package = tmp_path / "outside_parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "own.py").write_text("from typing import Literal\n" + SOURCE.format(divisor=1))
    (package / "broken.py").write_text(SOURCE.format(divisor=0))
    (package / "no_part.py").write_text("x = 1\n")
    (package / "odd.py").write_text(
        "class P:\n    def __init__(self, *, x: Path = 1) -> None: ...\nPART = P\n"
    )
    (package / "computed.py").write_text(
        "import math\nclass P:\n"
        "    def __init__(self, *, x: float = math.log(2)) -> None: ...\nPART = P\n"
    )
    (package / "syntax.py").write_text("class P(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    read_part.cache_clear()
    yield "outside_parts"
    read_part.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] == "outside_parts"]:
        del sys.modules[name]


def test_kinds_are_the_files_that_end_with_part():
    assert {"infonce", "siglip"} <= set(list_kinds("losses"))
    assert "ema" in list_kinds("addons") and "base" not in list_kinds("addons")
    assert set(list_kinds("eval")) >= {"zero_shot", "retrieval"}
    assert not {"embed", "tasks", "base"} & set(list_kinds("eval"))


def test_signature_is_the_schema():
    info = read_part("addons", "ema")
    assert info.class_name == "ExponentialMovingAverage"
    (decay,) = info.parameters
    assert (decay.name, decay.annotation, decay.required, decay.default) == (
        "decay",
        float,
        False,
        0.9999,
    )
    assert decay.doc.startswith("Weight of the past")


def test_arguments_before_the_star_are_not_settings():
    assert [p.name for p in read_part("eval", "zero_shot").parameters] == ["split"]


def test_outside_kind_needs_an_extension(outside):
    spec = {"kind": f"{outside}.own", "margin": 1}
    with pytest.raises(ConfigError, match=r"extensions: \[outside_parts\]"):
        check_part("losses", spec, "loss", extra={})
    with pytest.raises(ConfigError, match="outside clipkit"):
        check_part("losses", spec, "loss", extensions=("outside_part",), extra={})
    complete = check_part(
        "losses", spec, "loss", extensions=(outside,), extra={"weight": (float, 1.0)}
    )
    assert complete == {
        "kind": spec["kind"],
        "margin": 1.0,
        "mode": "a",
        "steps": None,
        "weight": 1.0,
    }
    built = build_part("losses", complete, "given", extensions=(outside,), drop=("weight",))
    assert built.arguments == ("given", 1.0, "a", None)


def test_docs_are_picked_up_over_several_lines(outside):
    docs = {p.name: p.doc for p in read_part("losses", f"{outside}.own", (outside,)).parameters}
    assert docs == {"margin": "How far apart, at least.", "mode": "Which way.", "steps": ""}


def test_checking_does_not_import_the_module(outside):
    check_part(
        "losses",
        {"kind": f"{outside}.broken", "margin": 1},
        "loss",
        extensions=(outside,),
        extra={},
    )
    assert f"{outside}.broken" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"kind": "own"}, r"loss\.margin: Field required"),
        ({"kind": "own", "margin": 1, "mode": "c"}, r"loss\.mode"),
        ({"kind": "own", "margin": float("inf")}, r"loss\.margin"),
        ({"kind": "own", "margin": 1, "given": 2}, r"loss\.given: unknown key"),
        ({"kind": "own", "marginn": 1}, "did you mean 'margin'"),
        ({"kind": "absent"}, "no such module"),
        ({"kind": "own.deeper"}, "no such module"),
        ({"kind": "no_part"}, "does not end with PART"),
        ({"kind": "odd"}, r"loss\.kind: kind 'outside_parts\.odd'.*'x'"),
        ({"kind": "computed"}, r"loss\.kind: kind 'outside_parts\.computed'.*'x'"),
        ({"kind": "syntax"}, r"loss\.kind: kind 'outside_parts\.syntax'"),
    ],
)
def test_mistakes_of_an_outside_part(outside, spec, expected):
    spec = {**spec, "kind": f"{outside}.{spec['kind']}"}
    with pytest.raises(ConfigError, match=expected) as caught:
        check_part("losses", spec, "loss", extensions=(outside,), extra={})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [None, "ema", {}, {"kind": 3}])
def test_a_part_is_a_mapping_with_a_kind(spec):
    with pytest.raises(ConfigError, match="needs a mapping with a 'kind'"):
        check_part("addons", spec, "addons.0", extra={})


def test_suggest():
    assert suggest("infonec", ["infonce", "siglip"]) == "; did you mean 'infonce'?"
    assert suggest("xyz", ["b", "a"]) == "; choose from: a, b"
    assert suggest("xyz", []) == ""
