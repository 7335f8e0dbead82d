"""A message is one line that a terminal prints as it is, whatever the names in it contain."""

import pickle

import pytest

from pyro_lom.errors import UserError, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain: ä, 日本, 🎲", "plain: ä, 日本, 🎲"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x1b[31mevil", r"\x1b[2J\x1b[31mevil"),
        ("\x9b2J\x7f\0", r"\x9b2J\x7f\x00"),
        ("\u2028 \u202e \u200b", r"\u2028 \u202e \u200b"),  # a line break, a reversal of the text, an invisible space
        ("name-\udcff", r"name-\udcff"),  # a byte of a file name that is not UTF-8
        ("back\\slash", "back\\slash"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, expected):
    assert printable(text) == expected
    assert printable(printable(text)) == expected
    assert str(UserError(text)) == expected
    assert str(pickle.loads(pickle.dumps(UserError(text)))) == expected


def test_the_middle_of_a_long_text_is_cut():
    line = printable("a" * 10**6 + "; remove it")
    assert len(line) < 1100 and line.startswith("aaa") and "a [...] a" in line and line.endswith("a; remove it")
