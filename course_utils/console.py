"""Signs at a console that does not have them: on one for ASCII only, "−3 nats · ✓" must not end in UnicodeEncodeError."""

from __future__ import annotations

import codecs
import io
from typing import TextIO

PLAIN = {"−": "-", "…": "...", "·": "-", "×": "x", "→": "->", "‖": "||", "²": "^2", "±": "+-", "≤": "<=", "½": "1/2",
         "✓": "+", "✗": "x", "○": "o"}
ERRORS = "faithful-circuits"  # the name under which codecs knows `_in_ascii`


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """What stands for the characters that could not be written: a plain sign that reads the same, else \\u and a number."""
    signs = error.object[error.start:error.end]
    return "".join(PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs), error.end


def write_anything(stream: TextIO | None) -> None:
    """Let a text stream write every character, if it would raise for some. UTF-8, and what is no file, stays as it is."""
    if not isinstance(stream, io.TextIOWrapper):
        return
    try:
        "😀".encode(stream.encoding, stream.errors)
    except UnicodeEncodeError:
        codecs.register_error(ERRORS, _in_ascii)
        stream.reconfigure(errors=ERRORS)
