"""A cached tokenizer is the tokenizer."""

import pickle
import random

import numpy as np
import open_clip
import pytest
import torch

from clipkit.data.token_cache import TokenCache
from tests.fixtures_shards import number_tokenizer

WORDS = ["a", "photo", "of", "the", "cat", "dog", "Füße", "犬", "é", "red,", "blue!", "12"]


def captions(count, seed=0):
    generator = random.Random(seed)
    lengths = (generator.randint(1, 120) for _ in range(count))
    return [" ".join(generator.choices(WORDS, k=n)) for n in lengths]


class Counting:
    """Remembers what it was asked."""

    def __init__(self, tokenizer=number_tokenizer):
        self.tokenizer, self.asked = tokenizer, []

    def __call__(self, texts):
        self.asked += texts
        return self.tokenizer(texts)


@pytest.fixture(scope="module")
def hf_tokenizer(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(w.strip(",!").lower() for w in WORDS)]
    model = tokenizers.models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]")
    plain = tokenizers.Tokenizer(model)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return open_clip.tokenizer.HFTokenizer(str(folder), context_length=32)


def check_equal(tokenizer):
    cache = TokenCache(tokenizer, 50)
    texts = captions(40)
    for chosen in (texts[:20], texts[10:30] * 2, texts, captions(45, 1), texts, captions(80, 2)):
        got = cache(chosen)
        assert got.dtype == torch.int64 and torch.equal(got, tokenizer(chosen))


def test_equals_open_clips_tokenizer():
    check_equal(open_clip.tokenizer.SimpleTokenizer())


def test_equals_a_hugging_face_tokenizer(hf_tokenizer):
    assert len({tuple(row) for row in hf_tokenizer(captions(20)).tolist()}) > 10
    check_equal(hf_tokenizer)


def test_each_caption_is_tokenised_once():
    tokenizer = Counting()
    cache = TokenCache(tokenizer, 10)
    cache(["a 1", "a 2", "a 1"])
    assert cache(["a 2", "a 3", "a 3"]).tolist() == [[2], [3], [3]]
    assert tokenizer.asked == ["a 1", "a 2", "a 3"]


def test_bounded():
    tokenizer = Counting()
    cache = TokenCache(tokenizer, 3)
    for start in range(20):
        texts = [f"a {i}" for i in (start, start + 1, start)]
        assert cache(texts).tolist() == [[start], [start + 1], [start]]
        assert len(cache._rows) <= 3 and cache._tokens.shape == (3, 1)


def test_a_batch_larger_than_the_cache():
    cache = TokenCache(number_tokenizer, 3)
    cache(["a 1"])
    assert cache([f"a {i}" for i in range(9)]).flatten().tolist() == list(range(9))
    assert cache(["a 1", "a 8"]).flatten().tolist() == [1, 8]


def test_nothing_in_nothing_out():
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    assert TokenCache(tokenizer, 3)([]).shape == tokenizer([]).shape


def test_kept_small():
    cache = TokenCache(number_tokenizer, 1000)
    cache(["x" * 60_000 + f" {i}" for i in range(20)])
    assert cache._tokens.dtype == np.int32
    assert sum(len(key) for key in cache._rows) == 20 * 16, "a long caption is not kept"


def test_pickled_without_content():
    cache = TokenCache(number_tokenizer, 1000)
    empty = len(pickle.dumps(cache))
    cache([f"a {i}" for i in range(500)])
    data = pickle.dumps(cache)
    assert len(data) == empty
    assert pickle.loads(data)(["a 7"]).tolist() == [[7]]  # noqa: S301


def test_odd_text():
    cache = TokenCache(lambda texts: torch.tensor([[len(t)] for t in texts]), 10)
    assert cache(["", "\ud800", "\0"]).tolist() == [[0], [1], [1]]
