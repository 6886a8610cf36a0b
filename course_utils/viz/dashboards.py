"""A latent on one page: how often it is active, where, and which next tokens it promotes.

Plain HTML with inline styles, no scripts: it looks the same in JupyterLab, in Colab, offline and in a stored notebook.
It sets no text colour, so that it can be read on a light and on a dark page.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.latents import top_activations
from course_utils.passes import all_but_first, checked_mask
from course_utils.text import reads_stories

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from course_utils.sae import SparseAutoencoder

BLUE, ORANGE = "0,114,178", "213,94,0"      # Okabe and Ito (2008): told apart by every kind of colour vision
BEFORE, AFTER = 14, 6                       # tokens shown around a place
BARS = 24                                   # of the histogram
MANY = 30                                   # a latent active at more places than this also shows weaker ones


class Context(NamedTuple):
    """A piece of text around a place where a latent is active: its tokens, the latent's values, which is the place."""

    words: list[str]
    values: list[float]
    place: int


class Dashboard:
    """What `latent_dashboard` found; shows itself as HTML in a notebook and as text elsewhere.

    Attributes:
        latent: its number.
        density: the share of the counted positions where it is active.
        contexts: for each place shown, the text around it.
        promoted, suppressed: (token, change of its logit) for one unit of the latent.
    """

    def __init__(
        self, latent: int, values: Float[Tensor, "n pos"], contexts: list[Context],
        promoted: list[tuple[str, float]], suppressed: list[tuple[str, float]], note: str,
        mask: Bool[Tensor, "n pos"] | None = None,
    ) -> None:
        self.latent, self.values, self.note = latent, values, note
        self.contexts, self.promoted, self.suppressed = contexts, promoted, suppressed
        self.density = (values[all_but_first(values) if mask is None else mask] != 0).float().mean().item()

    def __repr__(self) -> str:
        lines = [f"latent {self.latent}: active at {self.density:.2%} of positions, at most {self.values.max():.2f}"]
        if self.note:
            lines.append(self.note)
        lines.append("promotes: " + ", ".join(word for word, _ in self.promoted))
        lines.append("suppresses: " + ", ".join(word for word, _ in self.suppressed))
        for words, values, place in self.contexts:
            shown = [f"[{word}]" if i == place else word for i, word in enumerate(words)]
            lines.append(f"{values[place]:6.2f}  " + "".join(shown).replace("\n", "↵"))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        largest = float(self.values.max()) or 1.0
        note = f'<div style="margin:2px 0">{html.escape(self.note)}</div>' if self.note else ""
        head = (f'<div style="font-weight:bold;font-size:110%">latent {self.latent}</div>{note}'
                f'<div>active at {self.density:.2%} of positions; at most {largest:.2f}</div>')
        cells = (f'<div style="opacity:.7">its values, where active</div>{self._histogram()}',
                 f'<div style="opacity:.7">promotes</div>{_words(self.promoted, BLUE)}',
                 f'<div style="opacity:.7">suppresses</div>{_words(self.suppressed, ORANGE)}')
        style = "vertical-align:top;text-align:left;padding:4px 24px 4px 0"
        columns = "".join(f'<td style="{style}">{cell}</td>' for cell in cells)
        rows = "".join(self._context(context, largest) for context in self.contexts)
        return (f'<div style="border-left:6px solid rgb({BLUE});padding:4px 12px;margin:6px 0">{head}'
                f'<table style="border:none">{"<tr>" + columns + "</tr>"}</table>'
                f'<div style="opacity:.7">where it is active: the strongest place of a text, then places of medium '
                f'and low strength</div><table style="border:none">{rows}</table></div>')

    def _histogram(self) -> str:
        """Bars of how many positions have which value, as a small drawing."""
        active = self.values[self.values > 0]
        if not len(active):
            return "never"
        counts = torch.histc(active.float(), BARS, 0, float(active.max()))
        heights = (50 * counts / counts.max()).tolist()
        bars = "".join(f'<rect x="{7 * i}" y="{50 - height:.1f}" width="6" height="{height:.1f}" fill="rgb({BLUE})"/>'
                       for i, height in enumerate(heights))
        return (f'<svg width="{7 * BARS}" height="66" role="img" aria-label="histogram">{bars}'
                f'<text x="0" y="63" font-size="10" fill="currentColor">0</text>'
                f'<text x="{7 * BARS}" y="63" font-size="10" fill="currentColor" text-anchor="end">'
                f'{float(active.max()):.1f}</text></svg>')

    @staticmethod
    def _context(context: Context, largest: float) -> str:
        """One line of text, each token on a background as strong as the latent is there."""
        words, values, place = context
        spans = []
        for i, (word, value) in enumerate(zip(words, values)):
            under = "border-bottom:2px solid;" if i == place else ""
            shade = f"background:rgba({BLUE},{0.55 * max(value, 0) / largest:.2f});"
            spans.append(f'<span title="{value:.2f}" style="{under}{shade}padding:1px 2px">{_shown(word)}</span>')
        return (f'<tr><td style="text-align:right;opacity:.7;padding-right:10px">{values[place]:.2f}</td>'
                f'<td style="text-align:left;font-family:monospace;white-space:pre-wrap">{"".join(spans)}</td></tr>')


@torch.no_grad()
def latent_dashboard(
    model: TransformerBridge, sae: SparseAutoencoder, latents: Float[Tensor, "n pos d_sae"],
    tokens: Int[Tensor, "n pos"], latent: int, *, k: int = 6, note: str = "",
    mask: Bool[Tensor, "n pos"] | None = None,
) -> Dashboard:
    """The page of one latent.

    The next tokens are those whose logits its decoder row moves most if it speaks to the output directly (through the
    unembedding, without the layers between).
    Args:
        latents: what `latent_activations` gave for these tokens.
        k: how many of its strongest places to show; three weaker ones follow if it is active at more than 30 places.
        note: a line to print below the title.
        mask: as for `latent_activations`.
    Raises:
        ValueError: if there is no such latent, if latents and tokens do not belong together, or as
            `latent_activations` does.
    """
    if not 0 <= latent < latents.shape[-1] or latents.shape[:2] != tokens.shape:
        raise ValueError(f"latent is {latent}, latents {tuple(latents.shape)} and tokens {tuple(tokens.shape)}; they "
                         f"must be [n, pos, d_sae] and [n, pos], and the latent from 0 to {latents.shape[-1] - 1}")
    mask, strings = checked_mask(model, tokens, mask).to(latents.device), _strings(model)
    values = torch.where(mask, latents[..., latent], 0)                     # [n, pos]
    weaker = quantile_places(values, (0.5, 0.4, 0.2)) if int((values > 0).sum()) > MANY else []
    contexts = []
    for row, place in [*top_activations(values, k).tolist(), *weaker]:
        first, last = max(0, place - BEFORE), min(tokens.shape[1], place + AFTER + 1)
        words = [strings(token) for token in tokens[row, first:last].tolist()]
        contexts.append(Context(words, values[row, first:last].tolist(), place - first))
    effect = sae.W_dec[latent].to(model.W_U) @ model.W_U                    # [vocab]
    effect = effect - effect.mean()
    best, worst = effect.topk(8), (-effect).topk(8)
    promoted = [(strings(token), value) for token, value in zip(best.indices.tolist(), best.values.tolist())]
    suppressed = [(strings(token), -value) for token, value in zip(worst.indices.tolist(), worst.values.tolist())]
    return Dashboard(latent, values, contexts, promoted, suppressed, note, mask)


def quantile_places(values: Float[Tensor, "n pos"], quantiles: tuple[float, ...]) -> list[list[int]]:
    """[row, position] of the value at each quantile of the positive values: 0.5 is the median's place."""
    places = (values > 0).nonzero()                                         # [active, 2]
    ascending = places[values[values > 0].argsort()]
    return [ascending[int(quantile * len(places))].tolist() for quantile in quantiles]


def _strings(model: TransformerBridge) -> Callable[[int], str]:
    """From a token id to what a reader sees. The course's words are separated by spaces that no token contains."""
    space = " " if reads_stories(model) else ""
    return lambda token: model.tokenizer.decode([token]) + space


def _shown(word: str) -> str:
    """A token as HTML: line breaks as a sign, so that a context stays on its line."""
    return html.escape(word.replace("\n", "↵").replace("\t", "⇥"))


def _words(pairs: list[tuple[str, float]], colour: str) -> str:
    largest = max(abs(value) for _, value in pairs) or 1.0
    return "".join(f'<div><span style="display:inline-block;width:{46 * abs(value) / largest:.0f}px;height:9px;'
                   f'background:rgb({colour})"></span> <span style="font-family:monospace">{_shown(word)}</span></div>'
                   for word, value in pairs)
