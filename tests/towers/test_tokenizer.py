"""The tokenizer open_clip would choose for the same config."""

import json
import pickle

import open_clip
import pytest
import torch

from clipkit.errors import ConfigError
from clipkit.towers.build import build_towers
from clipkit.towers.tokenizer import build_tokenizer
from tests.fixtures_model import ARCH
from tests.tiny_model import MODEL_CFG


def test_equals_open_clips_simple_tokenizer():
    texts = ["a photo of a cat", "", "x" * 500, "été 😀"]
    tokens = build_tokenizer(ARCH)(texts)
    assert tokens.dtype == torch.int64 and tokens.shape == (4, 16)
    assert torch.equal(tokens, open_clip.SimpleTokenizer(context_length=16)(texts))
    assert int(tokens.max()) < ARCH["text_cfg"]["vocab_size"]


LONG = {
    "prose": "A black dog, two cats & the red house: it's a photo of 3 birds by the sea. " * 100,
    "letters without a blank": "狗在房子前面的草地上奔跑" * 80,
    "addresses": "see https://example.org/a/b.jpg?w=640&h=480#top or #blackandwhitephotography "
    * 90,
    "longest tokens": "😂" * 240 + " thinkbigsundaywithmarsha" * 400,
    "blanks": "a dog" + " \n" * 500 + "in the grass &amp;amp; " * 600,
    "single letters": "x " * 5000,
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("length", [16, 77])
def test_long_captions_have_the_tokens_they_always_had(name, length):
    tokenize = build_tokenizer({"text_cfg": {"context_length": length}})
    texts = [LONG[name], *(LONG[name][:n] for n in range(900, 6100, 650))]
    assert torch.equal(tokenize(texts), open_clip.SimpleTokenizer(context_length=length)(texts))


def test_a_hostile_caption_is_cut_before_its_pieces_are_merged(monkeypatch):
    sizes = []
    real = open_clip.SimpleTokenizer.bpe
    monkeypatch.setattr(
        open_clip.SimpleTokenizer, "bpe", lambda self, word: sizes.append(len(word)) or "a</w>"
    )
    tokenize = pickle.loads(pickle.dumps(build_tokenizer(ARCH)))  # noqa: S301
    tokenize(["z" * 20_000 + " a dog"])
    assert sizes == [1000, 1, 3]
    sizes.clear()
    tokenize([("z" * 999 + " ") * 60])
    assert max(sizes) == 999 and sum(sizes) <= 64 * 16 + 1000
    monkeypatch.setattr(open_clip.SimpleTokenizer, "bpe", real)
    first, second = tokenize(["q" * 1000 + " a dog", "q" * 3000 + " a dog"])
    assert torch.equal(first, second)


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
        "trust_remote_code": False,
    }


@pytest.mark.slow
def test_a_model_config_cannot_ask_for_remote_code() -> None:
    text_cfg = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    with pytest.raises(ConfigError, match="'trust_remote_code' is not allowed"):
        build_tokenizer({"text_cfg": text_cfg})


@pytest.mark.parametrize("key", ["hf_model_name", "hf_tokenizer_name"])
def test_code_in_a_folder_that_a_config_names_is_refused_unasked(tmp_path, monkeypatch, key):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    classes = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoTokenizer": ["code.T", None]}
    (tmp_path / "code.py").write_text(code)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": classes}))
    tokenizer = {"tokenizer_class": "T", "auto_map": classes}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    text_cfg = {**MODEL_CFG["text_cfg"], key: str(tmp_path)}
    with pytest.raises(ConfigError, match="custom code"):
        build_towers({**MODEL_CFG, "text_cfg": text_cfg})
    assert not (tmp_path / "ran").exists()
