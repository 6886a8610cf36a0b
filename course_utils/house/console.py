"""Text at a console: tables in columns, and signs where only ASCII can be written ("✓ −3 nats" must not raise)."""

from __future__ import annotations

import codecs
import io
from collections.abc import Sequence
from typing import TextIO

PLAIN = {"−": "-", "…": "...", "·": "-", "×": "x", "→": "->", "‖": "||", "²": "^2", "±": "+-", "≤": "<=", "½": "1/2",
         "✓": "+", "✗": "x", "○": "o"}
ERRORS = "faithful-circuits"  # the name under which codecs knows `_in_ascii`


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """What replaces characters that cannot be written: a plain sign that reads the same, else \\u and a number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start:error.end]
    return "".join(PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs), error.end


def in_columns(table: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same table, every cell as wide as the widest of its column."""
    widths = [max(map(len, column)) for column in zip(*table)]
    return [[cell.ljust(width) for cell, width in zip(row, widths)] for row in table]


def is_printable(value: object) -> bool:
    """Whether a value is a text that can be shown and stored: half of a surrogate pair, for one, cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_anything(stream: TextIO | None) -> None:
    """Let a text stream write every character, if it would raise for some. Others stay as they are."""
    if not isinstance(stream, io.TextIOWrapper):
        return
    try:
        "😀".encode(stream.encoding, stream.errors or "strict")
    except UnicodeEncodeError:
        codecs.register_error(ERRORS, _in_ascii)
        stream.reconfigure(errors=ERRORS)
