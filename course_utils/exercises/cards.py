"""The cards that exercises show: one small piece of HTML for notebooks, the same as plain text elsewhere.

A card has no scripts, no times and no addresses, so it is the same on every run. It sets no text colour
(the theme's own is used, light or dark), and its verdict is a word with a sign, never a colour alone.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from course_utils.house import in_columns

# Colours that stay apart for colour-blind readers (Okabe and Ito, 2008), used for the edge of the card only.
EDGES = {"passed": "#009E73", "not yet": "#8a8a8a", "wrong": "#D55E00", "error": "#CC79A7", "note": "#0072B2"}
SIGNS = {"passed": "✓ passed", "not yet": "○ not yet", "wrong": "✗ wrong", "error": "! error", "note": ""}


@dataclass(frozen=True)
class Card:
    """A verdict or a note: a title, a message, labelled rows, and closing lines."""

    kind: str  # a key of EDGES
    title: str
    message: str = ""
    rows: Sequence[tuple[str, str]] = ()
    closing: Sequence[str] = ()

    @property
    def head(self) -> str:
        sign = SIGNS[self.kind]
        return f"{sign} · {self.title}" if sign else self.title

    def text(self) -> str:
        """The card as plain text."""
        lines = [self.head]
        lines += [f"  {line}" for line in self.message.splitlines()]
        for label, value in self.rows:
            first, *rest = value.splitlines() or [""]
            lines += [f"  {label + ':':<10} {first}"] + [" " * 13 + line for line in rest]
        return "\n".join(lines + [f"  {line}" for line in self.closing])

    def html(self) -> str:
        """The card as HTML with inline styles; everything a learner wrote is escaped."""
        parts = [f"<div><b>{html.escape(self.head)}</b></div>"]
        if self.message:
            parts.append(f'<div style="white-space:pre-wrap">{html.escape(self.message)}</div>')
        if self.rows:
            parts.append(table_html(self.rows))
        parts += [f"<div>{html.escape(line)}</div>" for line in self.closing]
        return (f'<div style="border-left:6px solid {EDGES[self.kind]};padding:4px 12px;margin:4px 0">'
                + "".join(parts) + "</div>")


def table_html(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """A plain table; its cells keep their line breaks."""
    style = 'style="text-align:left;vertical-align:top;padding:1px 12px 1px 0;white-space:pre-wrap"'
    head = "".join(f"<th {style}>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td {style}>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table style="margin:4px 0">{"<tr>" + head + "</tr>" if header else ""}{body}</table>'


def table_text(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """The same table in columns of plain text."""
    return "\n".join("  ".join(row).rstrip() for row in in_columns([header, *rows]))


def show(text: str, **forms: str) -> None:
    """Display in a notebook (`html=…` or `markdown=…` beside the text), or print the text elsewhere."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(text)
        return
    display({"text/plain": text, **{f"text/{form}": value for form, value in forms.items()}}, raw=True)


def show_card(card: Card) -> None:
    show(card.text(), html=card.html())
