import logging
import sys
import unicodedata

import pytest

from dataflex_tools.core.printable import PrintableFormatter, printable

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    "text", ["", "plain text", "caf\u00e9 \u4e2d\u6587 \u0928\u0940\u200d", "\U0001f468\u200d\U0001f469"]
)
def test_text_of_any_language_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_no_character_that_steers_a_terminal_or_turns_text_around_is_left() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(everything, lines=True)
    assert {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} == {"\n", "\u200c", "\u200d"}
    assert not set(BIDI) & set(shown)
    shown.encode()
    assert "\n" not in printable(everything)


def test_what_is_spelled_out_can_be_told() -> None:
    assert printable("\x1b[31m\r\x9b\u202e\ud800\ufeff") == r"\x1b[31m\r\x9b\u202e\ud800\ufeff"


def test_a_logged_name_cannot_forge_a_second_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "read %s", ("a\nerror: fake\x1b[2J",), None)
    assert PrintableFormatter("%(message)s").format(record) == r"read a\nerror: fake\x1b[2J"


def test_a_traceback_keeps_its_lines_and_loses_its_escapes() -> None:
    try:
        raise ValueError("\x1b[31m")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "wrong\n", (), sys.exc_info())
    text = PrintableFormatter("%(message)s").format(record)
    assert "\x1b" not in text
    assert text.count("\n") > 2
