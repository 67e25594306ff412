"""Text fit for a page."""

import pytest

from clipkit.eval.plain_text import number, printable, shortened


def test_what_no_page_and_no_terminal_may_hold_is_replaced_and_the_rest_kept():
    assert printable("a\x1b[2Jb\x9b\r\u2028\u061c") == "a\ufffd[2Jb\ufffd\ufffd\ufffd\ufffd"
    assert printable("on\tone\nline") == "on one line"
    assert printable("a\x00b\x1bc\ud800d\u202ee\ufffff") == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffdf"
    kept = "Rötel 猫 \U0001f600 عربي <b>&"
    assert printable(kept) == kept
    printable("\ud83d" + kept).encode("utf-8")


def test_short_text_is_kept_and_long_text_cut():
    assert shortened("a  b\n c", 10) == "a b c"
    assert shortened("x" * 11, 10) == "x" * 9 + "…" and shortened("x" * 10, 10) == "x" * 10
    assert shortened("abe\u0301f", 4) == "ab…"  # not a letter without its accent
    assert len(shortened("word " * 10**6, 50)) <= 50


@pytest.mark.parametrize(
    "value, text",
    [(0.5, "0.5000"), (0, "0"), (0.0, "0.0000"), (1.0, "1.0000"), (360.0, "360"),
     (-2.31, "-2.3100"), (123.456, "123.5"), (1.2e-5, "1.2e-05"), (7, "7"), (1e300, "1.000e+300")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text
