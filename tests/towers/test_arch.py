"""Names and json files -> model_cfg, without torch."""

import json
import subprocess
import sys

import pytest

from clipkit.errors import ConfigError
from clipkit.towers.arch import check_model_cfg, list_architectures, read_arch
from tests.fixtures_model import ARCH, write_arch


def test_checking_a_run_imports_no_torch():
    code = "import sys, clipkit.engine.preflight, clipkit.cli.main; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B/32"])
def test_open_clips_names(name):
    assert read_arch(name)["embed_dim"] == 512


def test_all_dual_encoders_of_open_clip_are_accepted():
    names = list_architectures()
    assert len(names) > 50
    refused = []
    for name in names:
        try:
            assert read_arch(name)["vision_cfg"]
        except ConfigError as error:
            refused.append(name)
            assert "CoCa" in str(error)
    assert refused and all("coca" in name.lower() for name in refused)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-33", "unknown architecture 'ViT-B-33'; did you mean 'ViT-B-3"),
        ("../secret", "unknown architecture"),
        ("", "unknown architecture ''"),
        ("absent.json", "no such file: absent.json"),
    ],
)
def test_unknown_names(name, expected):
    with pytest.raises(ConfigError, match="model.arch") as caught:
        read_arch(name)
    assert expected in str(caught.value)


def test_json_files_plain_or_as_an_export_wraps_them(tmp_path):
    assert read_arch(str(write_arch(tmp_path))) == ARCH
    (tmp_path / "export.json").write_text(json.dumps({"model_cfg": ARCH, "preprocess_cfg": {}}))
    assert read_arch(str(tmp_path / "export.json")) == ARCH


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "has no 'embed_dim'"),
        ('{"embed_dim": 1, "vision_cfg": {}}', "has no 'text_cfg'"),
        ('{"model_cfg": 3}', "has no 'embed_dim'"),
    ],
)
def test_malformed_files(tmp_path, content, expected):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        read_arch(str(path))


def test_captioning_models_are_refused():
    with pytest.raises(ConfigError, match="captioning model"):
        check_model_cfg({**ARCH, "multimodal_cfg": {}}, "x")
