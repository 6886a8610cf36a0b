"""The static pictures of the lessons, drawn with matplotlib.

Each function returns a Figure that is already closed: as the last expression of a cell it is shown once,
`display(figure)` shows it anywhere else, and nothing is ever drawn twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from course_utils.viz.axes import LINE_STYLES, OKABE_ITO, as_array, new_axes, new_picture

if TYPE_CHECKING:
    from course_utils.attribution_graphs import AttributionGraph, Node

MAX_ANNOTATED = 64  # a heat map with more cells than this is read by colour only
MAX_TICKS = 40  # more labels than this on an axis cannot be read


def plot_attention(
    pattern: Float[ndarray, "query key"], tokens: list[str], title: str = "", *, ax: Axes | None = None
) -> Figure:
    """One head's attention as a picture: row = the position that looks, column = the position looked at.

    Args:
        pattern: attention probabilities, [query, key]; each row sums to 1.
        tokens: one string per position.

    Raises:
        ValueError: when the shape is not [len(tokens), len(tokens)].
    """
    values, n = as_array(pattern), len(tokens)
    if values.shape != (n, n):
        raise ValueError(f"pattern has shape {values.shape}; {n} tokens need [{n}, {n}]")
    ax = ax or new_axes(6.2)
    image = ax.imshow(values, cmap="viridis", vmin=0, vmax=1)
    labels = [str(token).replace("$", r"\$") for token in tokens]  # a lone $ would start a formula
    size = 9 if n <= 20 else 7
    ax.set_xticks(_ticks(n), [labels[i] for i in _ticks(n)], rotation=90, fontsize=size)
    ax.set_yticks(_ticks(n), [labels[i] for i in _ticks(n)], fontsize=size)
    ax.set(xlabel="key: the position looked at", ylabel="query: the position that looks", title=title)
    ax.figure.colorbar(image, ax=ax, label="attention probability", shrink=0.8)
    return ax.figure


def plot_head_scores(
    scores: Float[ndarray, "layer head"],
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
        ValueError: when scores does not have two dimensions, or vmax is not positive.
    """
    values = as_array(scores)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"scores has shape {values.shape}; it must be [layer, head]")
    if vmax is None:
        vmax = float(np.nanmax(np.abs(values))) or 1.0
    if not vmax > 0:
        raise ValueError(f"vmax is {vmax}; the colour scale needs a positive upper end")
    layers, heads = values.shape
    ax = ax or new_axes(min(8.0, 1.8 + 0.42 * layers))
    colours, vmin = ("PuOr", -vmax) if diverging else ("viridis", 0)
    image = ax.imshow(values, cmap=colours, vmin=vmin, vmax=vmax, aspect="auto")
    ax.set_xticks(_ticks(heads))
    ax.set_yticks(_ticks(layers))
    ax.set(xlabel=columns, ylabel="layer", title=title)
    ax.figure.colorbar(image, ax=ax, label=unit)
    if values.size <= MAX_ANNOTATED:
        _annotate(ax, image, values)
    return ax.figure


def plot_by_position(
    values: dict[str, Float[ndarray, "pos"]],
    ylabel: str,
    *,
    boundary: float | None = None,
    x: Float[ndarray, "pos"] | None = None,
    xlabel: str = "position in the sequence",
    title: str = "",
    markers: bool = False,
    errors: dict[str, Float[ndarray, "pos"]] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Lines over positions (or, with x and xlabel, over anything else: training steps, layers).

    Args:
        values: {label: one number per position}; each line has its own colour and its own dashes.
        ylabel: what is drawn, with its unit, for example "log-probability (nats)".
        boundary: x of a dotted vertical line, where the second copy starts.
        x: the positions; 0, 1, 2, … when not given.
        markers: mark the points, where few were measured and the lines only lead the eye.
        errors: {label: the half-width of an error bar at each position}, for some of the lines or all.

    Raises:
        ValueError: when values is empty or a line does not have one number per position.
    """
    if not values:
        raise ValueError("values is empty; it must hold at least one {label: numbers}")
    ax = ax or new_axes(3.4)
    for i, (label, line) in enumerate(values.items()):
        line = as_array(line)
        at = np.arange(line.size) if x is None else as_array(x)
        if line.shape != at.shape:
            raise ValueError(f"{label!r} has shape {line.shape}; the positions have shape {at.shape}")
        colour, style = OKABE_ITO[i % len(OKABE_ITO)], LINE_STYLES[i % len(LINE_STYLES)]
        ax.plot(at, line, label=label, linewidth=1.6, marker="o" if markers else None, markersize=4,
                color=colour, linestyle=style)
        if errors and label in errors:
            ax.errorbar(at, line, as_array(errors[label]), fmt="none", ecolor=colour, capsize=2)
    if boundary is not None:
        ax.axvline(boundary, color="0.4", linestyle=":", linewidth=1.2, label="second copy starts")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.3)
    ax.set_title(title)
    if len(values) > 1 or boundary is not None:
        ax.legend(fontsize=9, framealpha=0.9)
    return ax.figure


def plot_next_tokens(
    distributions: dict[str, Float[ndarray, "vocab"]], vocabulary: Sequence[str], *, title: str = ""
) -> Figure:
    """The ten most likely next tokens of the first distribution, as bars beside those of the others.

    Args:
        distributions: {label: one probability per token}.
        vocabulary: the token of each id.

    Raises:
        ValueError: when there is no distribution, or one does not have one probability per token.
    """
    values = {label: as_array(probs) for label, probs in distributions.items()}
    if not values or any(probs.shape != (len(vocabulary), ) for probs in values.values()):
        raise ValueError(f"each distribution needs {len(vocabulary)} probabilities, one per token; "
                         f"got {({label: probs.shape for label, probs in values.items()})}")
    shown = np.argsort(-next(iter(values.values())), kind="stable")[:10]
    ax = new_axes(4.2)
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


def _ticks(length: int) -> range:
    return range(0, length, -(-length // MAX_TICKS))


def _annotate(ax: Axes, image, values: ndarray) -> None:
    """Write each value in its cell, in black or white, whichever contrasts with the cell."""
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = f"{value:.2f}".replace("-0.00", "0.00")
        ax.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def plot_scatter(
    x: Float[ndarray, "..."], y: Float[ndarray, "..."], xlabel: str, ylabel: str, *, title: str = ""
) -> Figure:
    """Points with the line y = x: how well one number predicts another.

    Args:
        x, y: tensors or arrays of the same shape.
        xlabel, ylabel: what they are, with units.

    Raises:
        ValueError: when x and y differ in shape, or are empty.
    """
    xs, ys = as_array(x), as_array(y)
    if xs.shape != ys.shape or not xs.size:
        raise ValueError(f"x has shape {xs.shape} and y {ys.shape}; they must be equal, with at least one point")
    ax = new_axes(4.2)
    low, high = min(xs.min(), ys.min()), max(xs.max(), ys.max())
    ax.plot([low, high], [low, high], color="0.4", linestyle=":", linewidth=1.2, label="equal")
    ax.scatter(xs, ys, s=14, color=OKABE_ITO[0], alpha=0.7)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)
    return ax.figure


def plot_bars(
    values: Mapping[str, Mapping[str, float | tuple[float, float, float]]], xlabel: str, *, title: str = "",
    start: float = 0.0,
) -> Figure:
    """Horizontal bars: one row per name, one colour per series. `values` is {series: {name: number}}.

    Args:
        values: a number may come with its interval, (value, low, high): see `claims.estimate`.
        xlabel: what the numbers are, with the unit.
        start: where the bars start: what a number is when there is nothing to see, such as ½ for an AUC.

    Raises:
        ValueError: when there is nothing to draw or the series do not have the same names.
    """
    names = list(next(iter(values.values()), {}))
    if not names or any(list(series) != names for series in values.values()):
        raise ValueError("values must be {series: {name: number}} with the same names, in the same order, in every "
                         "series")
    ax = new_axes(1.2 + 0.3 * (len(values) > 1) + 0.2 * len(names) * max(1, 0.6 * len(values)))
    height = 0.8 / len(values)
    for i, (label, series) in enumerate(values.items()):
        at = [row + (i - (len(values) - 1) / 2) * height for row in range(len(names))]
        numbers = [number[0] if isinstance(number, tuple) else number for number in series.values()]
        lengths = [number - start for number in numbers]
        ax.barh(at, lengths, height=height, left=start, label=label, color=OKABE_ITO[i % len(OKABE_ITO)])
        for row, number in zip(at, series.values()):
            if isinstance(number, tuple):
                ax.plot(number[1:], [row, row], color="black", linewidth=1.2)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.invert_yaxis()
    ax.axvline(start, color="0.4", linewidth=0.8)
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
        ValueError: when there is no panel, or a curve does not have one number for each x.
    """
    if not panels:
        raise ValueError("panels must hold at least one (label, curves)")
    figure = new_picture(3.0, len(panels))
    for ax, (ylabel, curves) in zip(figure.axes, panels):
        curves = curves if isinstance(curves, dict) else {"": curves}
        for i, (name, curve) in enumerate(curves.items()):
            ys = as_array(curve)
            xs = np.arange(ys.size) if x is None else as_array(x)
            if ys.shape != xs.shape:
                raise ValueError(f"{name or ylabel!r} has shape {ys.shape}; x has shape {xs.shape}")
            colour, style = OKABE_ITO[i % len(OKABE_ITO)], LINE_STYLES[i % len(LINE_STYLES)]
            ax.plot(xs, ys, label=name, color=colour, linestyle=style)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.grid(alpha=0.3)
        if len(curves) > 1:
            ax.legend(fontsize=9)
    figure.suptitle(title)
    return figure


def plot_histogram(
    values: Float[ndarray, "n"], xlabel: str, what: str, *, bins: int = 40, title: str = ""
) -> Figure:
    """How many of the values lie where; `what` names them ("latents") on the y axis.

    Raises:
        ValueError: when there are none.
    """
    numbers = as_array(values)
    if not numbers.size:
        raise ValueError("there is nothing to count: values is empty")
    ax = new_axes(2.8)
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
    ax = new_axes(3.6)
    if line:
        ax.plot(*zip(*sorted(line)), color="0.5", linestyle="--", marker=".", label=line_label)
    for i, (name, (x, y)) in enumerate(points.items()):
        ax.plot(x, y, marker="osD^vP*X"[i % 8], color=OKABE_ITO[i % len(OKABE_ITO)], linestyle="", label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log")
    ax.legend(fontsize=9, loc="best")
    ax.grid(alpha=0.3)
    return ax.figure


INTO = {"q": "queries", "k": "keys", "v": "values", "": "MLPs and the logits"}


def plot_circuit(edges: Mapping[tuple[str, str], float], title: str = "", *, unit: str = "") -> Figure:
    """A circuit as a graph, from the embedding at the bottom to the logits: the larger an edge, the thicker its arrow.

    Args:
        edges: {(sender, receiver): size, of either sign}. Parts are "embed", "1.0" (a head), "mlp 2" and "logits"; a
            head that reads says with what: "1.0.v". Below 0 the arrow is dashed.
        unit: of the sizes.

    Raises:
        ValueError: when there is no edge, or a part has another name.
    """
    if not edges:
        raise ValueError("edges is empty; it must hold at least one {(sender, receiver): size}")
    places = circuit_places(edges)
    heads, top = _heads(edges), max(y for _, y in places.values())
    largest = max(map(abs, edges.values())) or 1.0
    ax = new_axes(1.5 + 0.58 * top)
    for (sender, receiver), size in sorted(edges.items(), key=lambda item: abs(item[1])):
        colour, share = edge_colour(receiver), abs(size) / largest
        bend = 0.0 if abs(places[receiver][1] - places[sender][1]) < 1.5 else 0.12
        ax.annotate("", places[receiver], places[sender], arrowprops={
            "arrowstyle": "-|>", "color": colour, "linewidth": 0.6 + 5 * share, "alpha": 0.35 + 0.6 * share,
            "shrinkA": 11, "shrinkB": 11, "connectionstyle": f"arc3,rad={bend}",
            "linestyle": "-" if size > 0 else "--"})
    for part, (x, y) in places.items():
        ax.text(x, y, re.sub(r"\.[qkv]$", "", part), ha="center", va="center", fontsize=8, zorder=5,
                bbox={"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "0.3"})
    for i, what in enumerate(INTO.values()):
        ax.plot([], [], color=OKABE_ITO[i], linewidth=2, label=f"into {what}")
    ax.set(xlim=(-0.6, heads + 0.6), ylim=(-0.5, top + 0.5), yticks=[], xticks=[], title=title, ylabel="later layers ↑",
           xlabel=f"largest{f' ({unit})' if unit else ''}: {_largest(edges, 5, '.2g')}")
    ax.xaxis.label.set_size(8)
    ax.figure.legend(fontsize=8, ncols=4, loc="outside lower center")
    return ax.figure


def _largest(edges: Mapping[tuple[str, str], float], n: int, digits: str) -> str:
    """The n largest edges in words."""
    chosen = sorted(edges, key=lambda edge: -abs(edges[edge]))[:n]
    return ", ".join(f"{' → '.join(edge)} {edges[edge]:{digits}}" for edge in chosen)


def edge_colour(receiver: str) -> str:
    """The colour of a circuit's edge: by whether it goes into queries, keys, values or another part."""
    return OKABE_ITO["qkv".find(receiver[-1]) if receiver.count(".") == 2 else 3]


def circuit_places(edges: Iterable[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """{part: (column, row)} of a circuit's parts, the embedding in row 0, the logits in the last one.

    Raises:
        ValueError: when a part has another name than those of `plot_circuit`.
    """
    edges = list(edges)
    places = {part: _place(part, _heads(edges)) for edge in edges for part in edge}
    top = 1 + max((y for part, (_, y) in places.items() if part != "logits"), default=0)
    return {part: (x, top if part == "logits" else y) for part, (x, y) in places.items()}


def _heads(edges: Iterable[tuple[str, str]]) -> int:
    """One more than the largest number of a head."""
    return 1 + max(int(found[1]) for part in ["0.0", *sum(edges, ())] if (found := re.match(r"\d+\.(\d+)", part)))


def _place(part: str, heads: int) -> tuple[float, float]:
    """Where a part stands: heads side by side, each layer's MLP to their right and above them."""
    if part in ("embed", "logits"):
        return heads / 2, 0.0
    if found := re.fullmatch(r"(\d+)\.(\d+)(\.[qkv])?", part):
        return float(found[2]), 1 + 2 * float(found[1])
    if found := re.fullmatch(r"mlp (\d+)", part):
        return float(heads), 2 + 2 * float(found[1])
    raise ValueError(f'there is no part {part!r}; parts are "embed", "1.0", "1.0.v", "mlp 2" and "logits"')


def plot_attribution_graph(
    graph: AttributionGraph, tokens: Sequence[str], names: Mapping[Node, str] | None = None, title: str = "",
) -> Figure:
    """An attribution graph, embeddings at the bottom, logits on top, positions from left to right.

    An edge is as thick as the share of the answer that comes through it; dashed, it is an inhibition.
    Args:
        graph: pruned: some dozens of nodes can be read.
        tokens: the prompt's words. names: what stands in a node, if not its number.
    Raises:
        ValueError: when the graph has no edge.
    """
    places, edges = attribution_places(graph), attribution_edges(graph)
    labels, largest = attribution_labels(graph, tokens, names), max(map(abs, edges.values()))
    right, top = (max(each) for each in zip(*places.values()))
    ax = new_axes(1.2 + 0.5 * top)
    for (source, target), size in sorted(edges.items(), key=lambda item: abs(item[1])):
        share = abs(size) / largest
        ax.annotate("", places[target], places[source], arrowprops={
            "arrowstyle": "-|>", "color": OKABE_ITO[3 if size > 0 else 1], "linewidth": 0.4 + 4 * share,
            "alpha": 0.12 + 0.8 * share, "shrinkA": 8, "shrinkB": 8, "linestyle": "-" if size > 0 else "--"})
    for node, (x, y) in places.items():
        ax.text(x, y, labels[node], ha="center", va="center", fontsize=6.5, zorder=5,
                bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "0.3"})
    rows = sorted({(y, node.layer) for node, (_, y) in zip(graph.nodes, places.values())})
    ax.set(xlim=(-0.8, right + 0.8), ylim=(-0.7, top + 0.7), xticks=[], title=title, ylabel="layer of the node",
           xlabel="positions of the prompt →  (solid: adds to its target, dashed: inhibits)\n"
                  f"largest (share of the influence): {_largest(edges, 2, '.2f')}")
    ax.xaxis.label.set_fontsize(8)
    ax.set_yticks([y for y, _ in rows], ["embeddings" if layer < 0 else "logits" if y == top else f"layer {layer}"
                                         for y, layer in rows], fontsize=8)
    return ax.figure


def attribution_edges(graph: AttributionGraph) -> dict[tuple[str, str], float]:
    """{(source, target): share of the answer's influence that comes through this edge, with the edge's sign}.

    Raises:
        ValueError: when there is no edge.
    """
    shares = graph.influence_of_edges()
    found = {(str(graph.nodes[source]), str(graph.nodes[target])): shares[target, source].item()
             for target, source in shares.nonzero().tolist()}
    if not found:
        raise ValueError("the graph has no edge: was it pruned too far?")
    return found


def attribution_places(graph: AttributionGraph) -> dict[str, tuple[float, float]]:
    """{node: (column, row)}: a row for each layer, a column for each node of the fullest layer at a position."""
    cells: dict[tuple[int, int], list[Node]] = {}
    for node in graph.nodes:
        cells.setdefault((node.position, node.layer), []).append(node)
    places: dict[str, tuple[float, float]] = {}
    left = 0
    for position in sorted({position for position, _ in cells}):
        width = max(len(nodes) for (at, _), nodes in cells.items() if at == position)
        for (at, layer), nodes in cells.items():
            if at == position:
                places |= {str(node): (left + i + (width - len(nodes)) / 2, layer + 1.0)
                           for i, node in enumerate(nodes)}
        left += width
    return {str(node): places[str(node)] for node in graph.nodes}


def attribution_labels(
    graph: AttributionGraph, tokens: Sequence[str], names: Mapping[Node, str] | None = None
) -> dict[str, str]:
    """{node: what stands in it}: a word for an embedding, layer and number for a feature that has no name."""
    def label(node: Node) -> str:
        if names and node in names:
            return names[node]
        return {"embedding": tokens[node.position], "error": "error", "logit": "logit",
                "feature": f"{node.layer}/{node.index}"}[node.kind]

    return {str(node): label(node) for node in graph.nodes}
