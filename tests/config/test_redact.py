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


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("s3://b/k?X-Amz-Signature=abcdef&x=1", "s3://b/k?X-Amz-Signature=[redacted]&x=1"),
        ("remote=s3://a/b?sig=s%2Fe&sv=2", "remote=s3://a/b?sig=[redacted]&sv=2"),
        ("https://a/b?sig=s%2Fe&sv=2", "https://a/b?sig=[redacted]&sv=2"),
        ("https://a/b?access_token=xyz", "https://a/b?access_token=[redacted]"),
        ("https://longtokenvalue@h/x", "https://[redacted]@h/x"),
        ("https://u:p@ss@h/x", "https://u:[redacted]@h/x"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("GET failed, Authorization: Bearer abcdefgh.ij", None),
        ('{"api_key": "abc", "x": "y"}', '{"api_key": "[redacted]", "x": "y"}'),
        ("password: hunter2, again", "password: [redacted] again"),
        ("data.storage_options.password=a b,c", "data.storage_options.password=[redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", MASK),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ", MASK),
        ("github_pat_" + "a1" * 20, MASK),
        ("loss=0.5 lr=1e-3 tokens_per_s=7", "loss=0.5 lr=1e-3 tokens_per_s=7"),
    ],
)
def test_secrets_inside_a_text(text, masked):
    found = redact(text)
    assert found == (masked or "GET failed, Authorization: [redacted] [redacted]")
    assert redact(found) == found


def test_two_words_of_a_command_line():
    assert redact(["--api-key", "abc", "--x", "y"]) == ["--api-key", MASK, "--x", "y"]


def test_secrets_of_the_environment_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("MY_STORE_PASSWORD", "correct-horse")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/token")
    monkeypatch.setenv("SHORT_TOKEN", "false")
    found = redact({"correct-horse": ["a correct-horse in /home/me/token is false"]})
    assert found == {MASK: [f"a {MASK} in /home/me/token is false"]}


@pytest.mark.parametrize("text", ["-" * 50_000, "a=" * 50_000, "://" * 50_000, "eyJ." * 50_000])
def test_long_texts_take_no_long_time(text):
    redact(text)  # patterns that back-track would take minutes


def test_the_folder_one_is_in_is_no_password(monkeypatch, tmp_path):
    monkeypatch.setenv("JOB_PWD", str(tmp_path))
    assert redact(f"{tmp_path}/r") == f"{tmp_path}/r"
    monkeypatch.setenv("PWD", "/home/me/runs")
    assert redact({"dir": "/home/me/runs/x"}) == {"dir": "/home/me/runs/x"}
    assert redact({"PWD": "correct-horse"}) == {"PWD": MASK}
