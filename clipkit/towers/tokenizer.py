"""Tokenizers of open_clip, chosen from the model config as open_clip chooses them for an export."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from clipkit.errors import ConfigError

# what a model config from elsewhere may set; never trust_remote_code or a code revision
_TOKENIZER_ARGUMENTS = (
    "additional_special_tokens",
    "clean",
    "language",
    "reduction_mask",
    "strip_sep_token",
)


# Merging a word's letters takes time with the square of its length. No token is longer than 32
# letters, so that what fills the context is never cut off.
_LONGEST_WORD = 1000
_LETTERS_PER_TOKEN = 64


def build_tokenizer(model_cfg: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    """Return list of str -> (n, context_length) int64.

    open_clip's own tokenizer is given what can matter of a text: of a run without a blank the first
    1,000 letters, and of the whole 64 letters for each token of the context and 1,000 more.

    Raises:
        ConfigError: The tokenizer's files are not on this machine and cannot be fetched.
    """
    text_cfg = model_cfg["text_cfg"]
    name = text_cfg.get("hf_tokenizer_name")
    kwargs = text_cfg.get("tokenizer_kwargs") or {}
    for key in kwargs:
        if key not in _TOKENIZER_ARGUMENTS:
            raise ConfigError(f"tokenizer_kwargs: '{key}' is not allowed in a model config")
    if name:
        try:
            return open_clip.tokenizer.HFTokenizer(
                name,
                context_length=text_cfg.get(
                    "context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH
                ),
                tokenizer_mode=text_cfg.get("tokenizer_mode"),
                trust_remote_code=False,  # unsaid, transformers would ask
                **kwargs,
            )
        except Exception as error:  # what is in a foreign folder makes its parsers raise any kind
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f"tokenizer '{name}' cannot be loaded: {reason}") from None
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({"model_cfg": {"text_cfg": text_cfg}})
        (Path(folder) / "open_clip_config.json").write_text(text, encoding="utf-8")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    longest = _LETTERS_PER_TOKEN * tokenizer.context_length + _LONGEST_WORD
    tokenizer.clean_fn = partial(_clean_and_cut, tokenizer.clean_fn, longest)
    return tokenizer


def _clean_and_cut(clean: Callable[[str], str], longest: int, text: str) -> str:
    return " ".join(word[:_LONGEST_WORD] for word in clean(text).split())[:longest]
