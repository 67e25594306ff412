"""The tokenizer open_clip would choose for the same config."""

import open_clip
import pytest
import torch

from clipkit.errors import ConfigError
from clipkit.towers.tokenizer import build_tokenizer
from tests.fixtures_model import ARCH


def test_equals_open_clips_simple_tokenizer():
    texts = ["a photo of a cat", "", "x" * 500, "été 😀"]
    tokens = build_tokenizer(ARCH)(texts)
    assert tokens.dtype == torch.int64 and tokens.shape == (4, 16)
    assert torch.equal(tokens, open_clip.SimpleTokenizer(context_length=16)(texts))
    assert int(tokens.max()) < ARCH["text_cfg"]["vocab_size"]


def test_context_length_defaults_to_77():
    assert build_tokenizer({"text_cfg": {}})(["a"]).shape == (1, 77)


def test_tokenizer_that_is_not_on_this_machine(monkeypatch):
    def absent(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nsecond line")

    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", absent)
    with pytest.raises(
        ConfigError, match="tokenizer 'no/such' cannot be loaded: We couldn't"
    ) as caught:
        build_tokenizer({"text_cfg": {"hf_tokenizer_name": "no/such"}})
    assert "\n" not in str(caught.value)


def test_hugging_face_settings_are_passed_on(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        open_clip.tokenizer, "HFTokenizer", lambda name, **options: seen.update(options, name=name)
    )
    text_cfg = {
        "hf_tokenizer_name": "n",
        "context_length": 64,
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    build_tokenizer({"text_cfg": text_cfg})
    assert seen == {
        "name": "n",
        "context_length": 64,
        "tokenizer_mode": None,
        "clean": "canonicalize",
    }


def test_a_model_config_cannot_ask_for_remote_code() -> None:
    text_cfg = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    with pytest.raises(ConfigError, match="'trust_remote_code' is not allowed"):
        build_tokenizer({"text_cfg": text_cfg})
