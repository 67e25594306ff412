"""Every study in configs/studies can be read, and what it trains can be configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.bench.study.commands import Places, row_chains, setup_chain
from clipkit.bench.study.definition import load_study
from clipkit.config.load import load_config

FOLDER = Path(__file__).parents[3] / "configs/studies"
STUDIES = sorted(p for p in FOLDER.glob("*.yaml") if not p.stem.endswith("_run"))


def test_all_studies_are_found() -> None:
    assert {"fusion_cifar", "fusion_emoji", "gap"} <= {p.stem for p in STUDIES}


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_study(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPKIT_DATA", str(tmp_path))
    study = load_study(path)
    places = Places(tmp_path / "out", path.parent, tmp_path)
    chains = [setup_chain(study, places), *row_chains(study, places, study.rows, study.seeds)]
    assert all(chain.commands for chain in chains[1:])
    trained = {
        c.words[2:] for x in chains for c in x.commands if c.words[:2] == ("clipkit", "train")
    }
    for config, *overrides in sorted(trained):
        load_config(config, overrides)
