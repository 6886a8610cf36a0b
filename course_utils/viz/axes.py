"""What all pictures share: their width, their colours, and axes that a notebook shows once."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

WIDTH = 7.0  # inches: the width of a notebook's text column
# Okabe and Ito (2008), "Color universal design": eight colours that every kind of colour vision tells apart.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")


def as_array(values) -> np.ndarray:
    """A float array from a tensor on any device, an array or nested lists."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=float)


def new_axes(height: float) -> Axes:
    """The axes of a new figure of notebook width, closed at once: the notebook must not show it a second time."""
    figure, ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    plt.close(figure)
    return ax
