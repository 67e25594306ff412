"""Each kind of user error has its own exit status."""

from clipkit import errors


def test_statuses_differ() -> None:
    kinds = [errors.ConfigError, errors.DataError, errors.CheckpointError]
    assert len({k.exit_status for k in kinds}) == 3
    assert all(issubclass(k, errors.ClipkitError) and k.exit_status for k in kinds)


def test_a_message_is_one_printable_line_whatever_the_names_in_it() -> None:
    text = str(errors.DataError("a\nb: \x1b[2J\u202e\ud800 é 日本 " + "x" * 9000))
    assert text.startswith("a\\nb: \\x1b[2J\\u202e\\ud800 é 日本 xxx")
    assert text.isprintable() and len(text) < 4000
