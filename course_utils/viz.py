"""Pictures for the lessons: static ones with matplotlib, interactive attention with CircuitsVis.

The static functions return a matplotlib Figure that is already closed: as the last expression of a cell it
is shown once, `display(figure)` shows it anywhere else, and nothing is ever drawn twice.

The widget is stored small. CircuitsVis needs 1.3 MB of JavaScript; in JupyterLab that bundle is sent to the
page first and then replaced by a *compact* form (a few kB: a loader and the numbers rounded to 4 digits), so
only the compact form is saved. It draws with the bundle when the page has it, else with a pinned copy from a
content delivery network. COURSE_VIZ=compact sends only the compact form (building, testing).
"""

from __future__ import annotations

import functools
import html
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 7.0  # inches: the width of a notebook's text column
MAX_ANNOTATED = 64  # a heat map with more cells than this is read by colour only
MAX_TICKS = 40  # more labels than this on an axis cannot be read
# Okabe and Ito (2008), "Color universal design": eight colours that every kind of colour vision tells apart.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")

# The script finds its box from their parent: JupyterLab and pages run it where it stands, VS Code runs a copy of it at
# the end of the output. Scripts run in their order, so the first box that none has taken is the script's own.
_LOADER = """<div data-cv style="margin:15px 0"><em>Attention widget: run this cell to draw it.</em></div>
<script>(async box => {
  try {
    box.removeAttribute("data-cv");
    const cv = window.CircuitsVis || await import("%(cdn)s");
    box.id = "circuits-vis-" + Math.random().toString(36).slice(2);
    box.textContent = "";
    cv.render(box.id, cv.%(element)s, %(props)s);
  } catch (error) { box.title = String(error); }
})(document.currentScript.parentElement.querySelector("[data-cv]"))</script>"""


def _array(values) -> np.ndarray:
    """A float array from a tensor on any device, an array or nested lists."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=float)


# ---------------------------------------------------------------------------------------------- interactive

@functools.lru_cache(maxsize=1)
def bundle_script() -> str:
    """The `<script>` element with the whole CircuitsVis bundle; `window.CircuitsVis` exists after it."""
    import circuitsvis

    source = Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js"
    code = source.read_text(encoding="utf-8").replace("var CircuitsVis=", "window.CircuitsVis=", 1)
    return "<script>if(!window.CircuitsVis){" + code.replace("</script", "<\\/script") + "}</script>"


class Widget:
    """A CircuitsVis element that displays itself; `.html` is the compact form that is stored."""

    def __init__(self, element: str, **props):
        import circuitsvis

        self.element = element
        data = json.dumps(props, separators=(",", ":")).replace("<", "\\u003c")  # no tag can end the script
        cdn = f"https://unpkg.com/circuitsvis@{circuitsvis.__version__}/dist/cdn/esm.js"
        self.html = _LOADER % {"cdn": cdn, "element": element, "props": data}

    def __repr__(self) -> str:
        return f"<{self.element} widget>"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        compact = {"text/html": self.html, "text/plain": repr(self)}
        if _widget_mode() == "compact":
            display(compact, raw=True)
            return
        handle = display({**compact, "text/html": bundle_script() + self.html}, raw=True, display_id=True)
        handle.update(compact, raw=True)


def _widget_mode() -> str:
    """`live` or `compact`. Colab gives every output a frame of its own: no bundle can be shared."""
    default = "compact" if "google.colab" in sys.modules else "live"
    mode = os.environ.get("COURSE_VIZ") or default
    if mode not in ("live", "compact"):
        raise ValueError(f"COURSE_VIZ is {mode!r}; it must be 'live' or 'compact'")
    return mode


def attention_patterns(tokens: list[str], attention: Float[np.ndarray, "head query key"]) -> Widget:
    """Interactive attention patterns of several heads over one sequence.

    Args:
        tokens: one string per position, shown as they are (`<bos>` too).
        attention: attention probabilities, [head, query, key], tensor or array.

    Raises:
        ValueError: when the shape is not [head, len(tokens), len(tokens)].
    """
    values = _array(attention)
    n = len(tokens)
    if values.ndim != 3 or values.shape[1:] != (n, n):
        raise ValueError(f"attention has shape {values.shape}; {n} tokens need [head, {n}, {n}]")
    gap = "" if any(" " in token for token in tokens) else "&nbsp;"  # words that bring no space of their own
    shown = [html.escape(token, quote=False) + gap for token in tokens]  # this element inserts tokens as HTML
    rounded = np.round(values, 4)  # more than the eye needs; and the stored output is small and stable
    return Widget("AttentionPatterns", tokens=shown, attention=rounded.tolist())


# --------------------------------------------------------------------------------------------------- static

def _new_axes(height: float) -> Axes:
    """The axes of a new figure of notebook width, closed at once: the notebook must not show it a second time."""
    figure, ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    plt.close(figure)
    return ax


def _ticks(length: int) -> range:
    return range(0, length, -(-length // MAX_TICKS))


def _annotate(ax: Axes, image, values: np.ndarray) -> None:
    """Write each value in its cell, in black or white, whichever contrasts with the cell."""
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = f"{value:.2f}".replace("-0.00", "0.00")
        ax.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def plot_attention(
    pattern: Float[np.ndarray, "query key"], tokens: list[str], title: str = "", *, ax: Axes | None = None
) -> Figure:
    """One head's attention as a picture: row = the position that looks, column = the position looked at.

    Args:
        pattern: attention probabilities, [query, key]; each row sums to 1.
        tokens: one string per position.

    Raises:
        ValueError: when the shape is not [len(tokens), len(tokens)].
    """
    values, n = _array(pattern), len(tokens)
    if values.shape != (n, n):
        raise ValueError(f"pattern has shape {values.shape}; {n} tokens need [{n}, {n}]")
    ax = ax or _new_axes(6.2)
    image = ax.imshow(values, cmap="viridis", vmin=0, vmax=1)
    labels = [str(token).replace("$", r"\$") for token in tokens]  # a lone $ would start a formula
    size = 9 if n <= 20 else 7
    ax.set_xticks(_ticks(n), [labels[i] for i in _ticks(n)], rotation=90, fontsize=size)
    ax.set_yticks(_ticks(n), [labels[i] for i in _ticks(n)], fontsize=size)
    ax.set(xlabel="key: the position looked at", ylabel="query: the position that looks", title=title)
    ax.figure.colorbar(image, ax=ax, label="attention probability", shrink=0.8)
    return ax.figure


def plot_head_scores(
    scores: Float[np.ndarray, "layer head"],
    title: str = "",
    *,
    vmax: float | None = 1.0,
    unit: str = "mean attention probability",
    diverging: bool = False,
    columns: str = "head",
    ax: Axes | None = None,
) -> Figure:
    """One number per head as a heat map, layer by head; numbers written in when there are at most 64 heads.

    Args:
        scores: [layer, head], tensor or array. NaN stays white.
        vmax: upper end of the colour scale, which starts at 0 (or at -vmax); None takes it from the data.
        unit: label of the colour bar, with its unit.
        diverging: for scores of either sign: 0 in the middle, orange below and purple above.
        columns: what the columns are, when they are not heads ("position", say).

    Raises:
        ValueError: when scores has not two dimensions, or vmax is not positive.
    """
    values = _array(scores)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"scores has shape {values.shape}; it must be [layer, head]")
    if vmax is None:
        vmax = float(np.nanmax(np.abs(values))) or 1.0
    if not vmax > 0:
        raise ValueError(f"vmax is {vmax}; the colour scale needs a positive upper end")
    layers, heads = values.shape
    ax = ax or _new_axes(min(8.0, 1.8 + 0.42 * layers))
    colours = {"cmap": "PuOr", "vmin": -vmax} if diverging else {"cmap": "viridis", "vmin": 0}
    image = ax.imshow(values, vmax=vmax, aspect="auto", **colours)
    ax.set_xticks(_ticks(heads))
    ax.set_yticks(_ticks(layers))
    ax.set(xlabel=columns, ylabel="layer", title=title)
    ax.figure.colorbar(image, ax=ax, label=unit)
    if values.size <= MAX_ANNOTATED:
        _annotate(ax, image, values)
    return ax.figure


def plot_by_position(
    values: dict[str, Float[np.ndarray, "pos"]],
    ylabel: str,
    *,
    boundary: float | None = None,
    x: Float[np.ndarray, "pos"] | None = None,
    xlabel: str = "position in the sequence",
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Lines over positions (or, with x and xlabel, over anything else: training steps, layers).

    Args:
        values: {label: one number per position}; each line has its own colour and its own dashes.
        ylabel: what is drawn, with its unit, for example "log-probability (nats)".
        boundary: x of a dotted vertical line, where the second copy starts.
        x: the positions; 0, 1, 2, … when not given.

    Raises:
        ValueError: when values is empty or a line has not one number per position.
    """
    if not values:
        raise ValueError("values is empty; it must hold at least one {label: numbers}")
    ax = ax or _new_axes(3.4)
    for i, (label, line) in enumerate(values.items()):
        line = _array(line)
        at = np.arange(line.size) if x is None else _array(x)
        if line.shape != at.shape:
            raise ValueError(f"{label!r} has shape {line.shape}; the positions have shape {at.shape}")
        style = {"color": OKABE_ITO[i % len(OKABE_ITO)], "linestyle": LINE_STYLES[i % len(LINE_STYLES)]}
        ax.plot(at, line, label=label, linewidth=1.6, **style)
    if boundary is not None:
        ax.axvline(boundary, color="0.4", linestyle=":", linewidth=1.2, label="second copy starts")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.3)
    ax.set_title(title)
    if len(values) > 1 or boundary is not None:
        ax.legend(fontsize=9, framealpha=0.9)
    return ax.figure


def plot_next_tokens(
    distributions: dict[str, Float[np.ndarray, "vocab"]], vocabulary: Sequence[str], *, title: str = ""
) -> Figure:
    """The ten likeliest next tokens of the first distribution, as bars beside those of the others.

    Args:
        distributions: {label: one probability per token}.
        vocabulary: the token of each id.

    Raises:
        ValueError: when there is no distribution, or one has not one probability per token.
    """
    values = {label: _array(probs) for label, probs in distributions.items()}
    if not values or any(probs.shape != (len(vocabulary), ) for probs in values.values()):
        raise ValueError(f"each distribution needs {len(vocabulary)} probabilities, one per token; "
                         f"got {({label: probs.shape for label, probs in values.items()})}")
    shown = np.argsort(-next(iter(values.values())), kind="stable")[:10]
    ax = _new_axes(4.2)
    height = 0.8 / len(values)
    for i, (label, probs) in enumerate(values.items()):
        at = np.arange(len(shown)) + (i - (len(values) - 1) / 2) * height
        ax.barh(at, probs[shown], height=height, label=label, color=OKABE_ITO[i % len(OKABE_ITO)])
    ax.set_yticks(range(len(shown)), [str(vocabulary[i]).replace("$", r"\$") for i in shown])
    ax.invert_yaxis()
    ax.set(xlabel="probability of the next token", ylabel="token")
    ax.set_title(title, fontsize=10)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize=9)
    return ax.figure
