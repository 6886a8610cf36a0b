"""More pictures for the lessons: points against a diagonal, bars by name, curves side by side. Made like those of `viz`."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from course_utils.viz import LINE_STYLES, OKABE_ITO, WIDTH, _array, _new_axes


def plot_scatter(
    x: Float[ndarray, "..."], y: Float[ndarray, "..."], xlabel: str, ylabel: str, *, title: str = ""
) -> Figure:
    """Points with the line y = x: how far one number stands for another.

    Args:
        x, y: tensors or arrays of the same shape.
        xlabel, ylabel: what they are, with units.

    Raises:
        ValueError: when x and y have not the same shape, or are empty.
    """
    xs, ys = _array(x), _array(y)
    if xs.shape != ys.shape or not xs.size:
        raise ValueError(f"x has shape {xs.shape} and y {ys.shape}; they must be equal, with at least one point")
    ax = _new_axes(4.2)
    low, high = min(xs.min(), ys.min()), max(xs.max(), ys.max())
    ax.plot([low, high], [low, high], color="0.4", linestyle=":", linewidth=1.2, label="equal")
    ax.scatter(xs, ys, s=14, color=OKABE_ITO[0], alpha=0.7)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)
    return ax.figure


def plot_bars(values: dict[str, dict[str, float]], xlabel: str, *, title: str = "") -> Figure:
    """Horizontal bars: one row per name, one colour per series. `values` is {series: {name: number}}.

    Args:
        xlabel: what the numbers are, with the unit.

    Raises:
        ValueError: when there is nothing to draw or the series have not the same names.
    """
    names = list(next(iter(values.values()), {}))
    if not names or any(list(series) != names for series in values.values()):
        raise ValueError("values must be {series: {name: number}} with the same names, in the same order, in every series")
    ax = _new_axes(1.2 + 0.3 * (len(values) > 1) + 0.2 * len(names) * max(1, 0.6 * len(values)))
    height = 0.8 / len(values)
    for i, (label, series) in enumerate(values.items()):
        at = [row + (i - (len(values) - 1) / 2) * height for row in range(len(names))]
        ax.barh(at, list(series.values()), height=height, label=label, color=OKABE_ITO[i % len(OKABE_ITO)])
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.invert_yaxis()
    ax.axvline(0, color="0.4", linewidth=0.8)
    ax.set(xlabel=xlabel, title=title)
    ax.grid(axis="x", alpha=0.3)
    if len(values) > 1:
        ax.figure.legend(fontsize=9, ncols=len(values), loc="outside lower center")
    return ax.figure


def plot_curves(
    panels: list[tuple[str, Float[ndarray, "x"] | dict[str, Float[ndarray, "x"]]]], *, xlabel: str,
    x: Float[ndarray, "x"] | None = None, title: str = "",
) -> Figure:
    """Curves over one axis, a panel for each quantity: [(label of the y axis, one curve or {name: curve})].

    Args:
        x: where the numbers stand; 0, 1, 2, … when not given.

    Raises:
        ValueError: when there is no panel, or a curve has not one number for each x.
    """
    if not panels:
        raise ValueError("panels must hold at least one (label, curves)")
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.0), layout="constrained", squeeze=False)
    plt.close(figure)
    for ax, (ylabel, curves) in zip(axes[0], panels):
        curves = curves if isinstance(curves, dict) else {"": curves}
        for i, (name, curve) in enumerate(curves.items()):
            ys = _array(curve)
            xs = np.arange(ys.size) if x is None else _array(x)
            if ys.shape != xs.shape:
                raise ValueError(f"{name or ylabel!r} has shape {ys.shape}; x has shape {xs.shape}")
            ax.plot(xs, ys, label=name, color=OKABE_ITO[i % len(OKABE_ITO)], linestyle=LINE_STYLES[i % len(LINE_STYLES)])
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.grid(alpha=0.3)
        if len(curves) > 1:
            ax.legend(fontsize=9)
    figure.suptitle(title)
    return figure


def plot_histogram(
    values: Float[ndarray, "n"], xlabel: str, what: str, *, bins: int = 40, title: str = ""
) -> Figure:
    """How many of the values lie where; `what` they are ("latents") is the label of the y axis.

    Raises:
        ValueError: when there are none.
    """
    numbers = _array(values)
    if not numbers.size:
        raise ValueError("there is nothing to count: values is empty")
    ax = _new_axes(2.8)
    ax.hist(numbers.flatten(), bins=bins, color=OKABE_ITO[0])
    ax.set(xlabel=xlabel, ylabel=f"number of {what}", title=title)
    ax.grid(alpha=0.3)
    return ax.figure


def plot_points(
    points: dict[str, tuple[float, float]], xlabel: str, ylabel: str, *, line: list[tuple[float, float]] | None = None,
    line_label: str = "", title: str = "",
) -> Figure:
    """Named points over a logarithmic x axis, and a line of others to compare them with. Lower left to upper right is
    a trade; what lies above and to the left of another point is better than it.

    Raises:
        ValueError: when there are no points.
    """
    if not points:
        raise ValueError("points is empty; it must hold at least one {name: (x, y)}")
    ax = _new_axes(3.6)
    if line:
        ax.plot(*zip(*sorted(line)), color="0.5", linestyle="--", marker=".", label=line_label)
    for i, (name, (x, y)) in enumerate(points.items()):
        ax.plot(x, y, marker="osD^vP*X"[i % 8], color=OKABE_ITO[i % len(OKABE_ITO)], linestyle="", label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log")
    ax.legend(fontsize=9, loc="best")
    ax.grid(alpha=0.3)
    return ax.figure
