"""Text from data as it may be shown: what would steer a terminal, or change the order of what is read, is spelled out."""

import logging
import unicodedata
from typing import Any

# joiners shape letters of Indic scripts and Persian, and emoji; they move nothing
_HARMLESS = ("\u200c", "\u200d")
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn")  # control, format, surrogate, separators of lines, no character


def printable(text: Any, *, lines: bool = False) -> str:
    """`text` with control, escape, bidi and invisible characters written as `\\x1b` or `\\u202e`.

    A name or a message is one line: ends of lines are spelled out too, unless `lines`.
    """
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(_shown(char) if _is_hidden(char) and not (lines and char == "\n") else char for char in plain)


def _is_hidden(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN and char not in _HARMLESS


def _shown(char: str) -> str:
    return char.encode("unicode_escape").decode()


class PrintableFormatter(logging.Formatter):
    """Log lines whose message is one line of printable text, whatever was logged."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback after it if the record has one."""
        text = str(super().format(record))
        head, newline, rest = text.partition("\n") if record.exc_info or record.stack_info else (text, "", "")
        return printable(head) + newline + printable(rest, lines=True)
