"""Secrets are masked at any depth; what only sounds like one is not."""

import pytest

from clipkit.config.redact import MASK, redact


@pytest.mark.parametrize(
    "key", ["api_key", "WANDB_API_KEY", "apikey", "hf_token", "secret", "password", "passwd"]
)
def test_keys_that_name_a_secret(key):
    assert redact({"log": [{key: "abc"}]}) == {"log": [{key: MASK}]}
    assert redact([f"--{key}=abc", f"log.{key}=abc"]) == [f"--{key}={MASK}", f"log.{key}={MASK}"]


@pytest.mark.parametrize("key", ["tokenizer", "keep", "hf_tokenizer_name", "lr"])
def test_other_keys_stay(key):
    assert redact({key: "abc"}) == {key: "abc"}


@pytest.mark.parametrize(
    "value",
    [
        "hf_" + "a" * 30,
        "sk-" + "b" * 30,
        "ghp_" + "c" * 36,
        "AKIA" + "D" * 16,
        "0123456789" * 4,
        "xoxb-1234567890-x",
    ],
)
def test_values_that_look_like_a_secret(value):
    assert redact({"note": f"use {value} here"}) == {"note": f"use {MASK} here"}


def test_password_in_a_url():
    assert redact("s3://me:hidden@host/x") == f"s3://me:{MASK}@host/x"
    assert redact("https://host:8080/a") == "https://host:8080/a"


def test_other_values_and_types_stay():
    value = {"a": (1, 2.5, None, True), "b": ["x=1", "f" * 64], "password": ""}
    assert redact(value) == value
    assert isinstance(redact((1,)), tuple)
