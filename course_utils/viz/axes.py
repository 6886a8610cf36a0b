"""What all pictures share: their width, their colours, and axes that a notebook shows once."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 7.0  # inches: the width of a notebook's text column
# Okabe and Ito (2008), "Color universal design": eight colours that every kind of colour vision tells apart.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")


class Picture(Figure):
    """A figure that says what it shows: a notebook keeps that as the picture's alternative text."""

    def alt(self) -> str:
        """The title, what each panel draws, and the names in its legend: "Loss. CE (nats) by step: clean, patched."."""
        panels = [ax for ax in self.axes if ax.get_label() != "<colorbar>"]
        bars = [ax.get_ylabel() for ax in self.axes if ax.get_label() == "<colorbar>"]
        titles = [self.get_suptitle(), *(ax.get_title() for ax in panels)]
        return " ".join(f"{text}." for text in [*titles, *(_described(ax) for ax in panels), *bars] if text)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        """What stands for the picture where none can be shown; matplotlib adds the picture itself."""
        return {"text/plain": f"<{self.alt()}>"}, {"image/png": {"alt": self.alt()}}


def _described(ax: Axes) -> str:
    drawn = " by ".join(filter(None, [ax.get_ylabel(), ax.get_xlabel()]))
    names = ", ".join(name for name in ax.get_legend_handles_labels()[1] if name)
    return ": ".join(filter(None, [drawn, names]))


def as_array(values) -> np.ndarray:
    """A float array from a tensor on any device, an array or nested lists."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=float)


def new_picture(height: float, panels: int = 1) -> Picture:
    """A new figure of notebook width, its panels side by side, closed at once: a notebook must not show it twice."""
    picture, _ = plt.subplots(1, panels, FigureClass=Picture, figsize=(WIDTH, height), layout="constrained")
    plt.close(picture)
    return picture


def new_axes(height: float) -> Axes:
    """The axes of a new figure of notebook width."""
    return new_picture(height).axes[0]
