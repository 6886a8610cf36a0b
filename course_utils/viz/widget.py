"""Interactive attention patterns, with CircuitsVis.

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
from pathlib import Path

import numpy as np
from jaxtyping import Float

from course_utils.viz.axes import as_array

# The script finds its box from their parent: JupyterLab and pages run it where it stands, VS Code runs a copy of it at
# the end of the output. Scripts run in their order, so the first box that none has taken is the script's own. nbclassic
# runs a copy in the page's head: there the script's own box is the one before a script of the same text.
OWN_BOX = """(script => script.parentElement.querySelector("[%(mark)s]") ||
  [...document.querySelectorAll("[%(mark)s] + script")].find(each => each.text === script.text).previousElementSibling
)(document.currentScript)"""
_LOADER = """<div data-cv style="margin:15px 0"><em>Attention widget: run this cell to draw it.</em></div>
<script>(async box => {
  try {
    box.removeAttribute("data-cv");
    const cv = window.CircuitsVis || await import("%(cdn)s");
    box.id = "circuits-vis-" + Math.random().toString(36).slice(2);
    box.textContent = "";
    cv.render(box.id, cv.%(element)s, %(props)s);
  } catch (error) { box.title = String(error); }
})(%(box)s)</script>"""


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
        box = OWN_BOX % {"mark": "data-cv"}
        self.html = _LOADER % {"cdn": cdn, "element": element, "props": data, "box": box}

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
    values = as_array(attention)
    n = len(tokens)
    if values.ndim != 3 or values.shape[1:] != (n, n):
        raise ValueError(f"attention has shape {values.shape}; {n} tokens need [head, {n}, {n}]")
    gap = "" if any(" " in token for token in tokens) else "&nbsp;"  # words that bring no space of their own
    shown = [html.escape(token, quote=False) + gap for token in tokens]  # this element inserts tokens as HTML
    rounded = np.round(values, 4)  # more than the eye needs; and the stored output is small and stable
    return Widget("AttentionPatterns", tokens=shown, attention=rounded.tolist())
