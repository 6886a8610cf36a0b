"""The lessons' formulas as MathML, which browsers draw by themselves: no script, no fonts, no network."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert

CODE = r"```.*?```|`[^`\n]+`"
FORMULA = re.compile(rf"({CODE})|\$\$(.+?)\$\$|\$(?!\s)([^$`\n]+?)(?<!\s)\$(?!\d)", re.DOTALL)


def mathml(tex: str, *, block: bool = False) -> str:
    """A formula as a <math> element.

    Raises:
        ValueError: when it is not understood, or what comes out is not well-formed (an environment with "&", say).
    """
    try:
        element = convert(tex, display="block" if block else "inline")
        ElementTree.fromstring(element)
    except Exception as error:          # the converter has a dozen kinds, and some IndexErrors
        raise ValueError(f"the formula {tex!r} cannot be drawn: {type(error).__name__}: {error}") from error
    return element


def formulas(markdown: str) -> list[tuple[str, bool]]:
    """(TeX, whether it stands by itself) of each formula; dollar signs in code are no formulas."""
    return [(found[2] or found[3], bool(found[2])) for found in FORMULA.finditer(markdown) if not found[1]]


def with_mathml(markdown: str) -> str:
    """The same text with every formula drawn."""
    return FORMULA.sub(lambda found: found[1] or mathml(found[2] or found[3], block=bool(found[2])), markdown)
