"""Text from outside: what is obeyed or unseen is shown, and nothing else is touched."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensplug.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]8;;http://a\x1b\\b", r"\x1b]8;;http://a\x1b\b"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\x08\x00\x7f", r"a\rb\x08\x00\x7f"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("a\u200bb\ufeffc", r"a\u200bb\ufeffc"),
        ("\ud800", r"\ud800"),
        ("\U000e0041\U000e0100", r"\U000e0041\U000e0100"),
        ("a\u200db", r"a\u200db"),
        ("\u2028\u3164\u2800", r"\u2028\u3164\u2800"),
    ],
)
def test_what_is_obeyed_or_unseen_is_shown(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "C:\\new\\x1b",
        "größer 日本語 עברית",
        "می\u200cخواهم",
        "👩\u200d👧 ❤\ufe0f",
        "a\u0301",
        "[/x] :smile:",
        "a\u00a0b",
        "",
    ],
)
def test_what_can_be_read_is_left_alone(text):
    assert printable(text) == text


def test_line_breaks_are_kept_where_asked():
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


@given(st.text(st.characters()))
def test_any_text_can_be_written_and_holds_nothing_that_is_obeyed(text):
    shown = printable(text)
    shown.encode("utf-8")
    joiners = {"\u200c", "\u200d"}
    assert not {one for one in shown if unicodedata.category(one) in {"Cc", "Cs", "Zl", "Zp"}}
    assert {one for one in shown if unicodedata.category(one) == "Cf"} <= joiners
