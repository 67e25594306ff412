"""The pass from paths to a folder: damage is warned of, and the model comes last."""

import json
from pathlib import Path

import pytest

from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval.embedding_pass import PassSettings, check_precision, run_pass
from tests.fixtures_encoder import color_encoder
from tests.fixtures_shards import write_shards


def loaded():
    """A model that sees 8 x 8 pixels."""
    encoder = color_encoder()
    pixels = encoder.preprocess
    encoder.preprocess = lambda image: pixels(image.resize((8, 8)))
    return "PLACE", encoder


def test_a_line_says_what_was_done(tmp_path: Path, capsys) -> None:
    paths = write_shards(tmp_path / "shards", [3, 2], bad=(1,))
    settings = PassSettings(tmp_path / "out", max_bad_fraction=0.5, batch_size=2)
    line = run_pass(paths, loaded, World(), settings)
    assert line == f"{tmp_path}/out: 4 rows of 3, 4 with a caption; skipped: 1 unreadable_image"
    assert "up to date: 4 rows" in run_pass(paths, loaded, World(), settings)
    assert capsys.readouterr().err == ""


def test_damage_is_warned_of_before_the_model_is_loaded(tmp_path: Path, capsys) -> None:
    (path,) = write_shards(tmp_path / "shards", [6])
    Path(path).write_bytes(Path(path).read_bytes()[:6000])
    settings = PassSettings(tmp_path / "out")
    run_pass([path], loaded, World(), settings)
    assert capsys.readouterr().err.startswith(f"clipkit: warning: {path}: cut short")

    def never():
        raise AssertionError

    with pytest.raises(DataError, match="absent"):
        run_pass([str(tmp_path / "absent.tar")], never, World(), settings)


def test_precision() -> None:
    check_precision("fp32")
    check_precision("bf16")
    with pytest.raises(ConfigError, match="fp8"):
        check_precision("fp8")


def test_what_refines_is_asked_for_with_place_and_encoder(tmp_path: Path) -> None:
    class Same:
        name = "same again"

        def image(self, features):
            return features

        text = image

    asked = []

    def refine(place, encoder):
        asked.append((place, encoder.precision))
        return [Same()]

    paths, settings = write_shards(tmp_path / "shards", [3]), PassSettings(tmp_path / "out")
    line = run_pass(paths, loaded, World(), settings, refine)
    assert line.endswith("skipped: none; refined by same again") and asked == [("PLACE", "fp32")]
    assert run_pass(paths, loaded, World(), settings, refine).endswith("refined by same again")
    index = tmp_path / "out" / "index.json"
    facts = json.loads(index.read_text())
    del facts["refinements"]  # as an older index has it
    index.write_text(json.dumps(facts))
    assert run_pass(paths, loaded, World(), settings, refine).endswith("skipped: none")
