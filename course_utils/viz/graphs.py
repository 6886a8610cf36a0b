"""A graph to play with: an SVG in the page that dims all but one node's edges, and hides the small ones.

Everything is in the output itself, some kilobytes: no library, no network. Where no script may run, the drawing and
its texts (hold the pointer over an edge) are still there.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.viz.axes import OKABE_ITO
from course_utils.viz.charts import (
    INTO,
    attribution_edges,
    attribution_labels,
    attribution_places,
    circuit_places,
    edge_colour,
)
from course_utils.viz.widget import OWN_BOX

if TYPE_CHECKING:
    from course_utils.attribution_graphs import AttributionGraph, Node

STEP_X, STEP_Y, MARGIN = 110, 44, 40        # pixels between nodes, and around all
DASHES = ' stroke-dasharray="5 4"'

# The script finds its box as the attention widget's does: the first one that no script has taken.
_PAGE = """<div data-graph class="course-graph" style="max-width:%(width)dpx">
<label style="font:12px sans-serif">edges of at least <output>0</output>%(unit)s
<input type="range" min="0" max="100" value="0" aria-label="the smallest edge that is shown"></label>
%(svg)s</div>
<script>(box => {
  box.removeAttribute("data-graph");
  const edges = [...box.querySelectorAll("[data-size]")], nodes = [...box.querySelectorAll("[data-node]")];
  const slider = box.querySelector("input"), said = box.querySelector("output"), largest = %(largest)s;
  let chosen = null;
  const draw = () => {
    const least = largest * (slider.value / 100) ** 2, seen = new Set();
    said.textContent = least.toPrecision(2);
    for (const edge of edges) {
      const {size, from, to} = edge.dataset, shown = size >= least;
      edge.style.display = shown ? "" : "none";
      edge.style.opacity = chosen === null || from === chosen || to === chosen ? "" : 0.06;
      if (shown) { seen.add(from); seen.add(to); }
    }
    for (const node of nodes) node.style.opacity = seen.has(node.dataset.node) ? "" : 0.25;
  };
  slider.addEventListener("input", draw);
  for (const node of nodes) {
    node.addEventListener("pointerenter", () => { chosen = node.dataset.node; draw(); });
    node.addEventListener("pointerleave", () => { chosen = null; draw(); });
  }
})(%(box)s)</script>"""


class InteractiveGraph:
    """Displays itself; `.svg` is the drawing alone, `.html` what is stored."""

    def __init__(
        self, places: Mapping[str, tuple[float, float]], edges: Mapping[tuple[str, str], float], *, title: str = "",
        unit: str = "", labels: Mapping[str, str] | None = None, notes: Mapping[str, str] | None = None,
        colours: Mapping[tuple[str, str], str] | None = None, groups: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            places: {node: (column, row)}; row 0 is at the bottom.
            edges: {(sender, receiver): size, of either sign}. Below 0 the line is dashed.
            labels: what stands in a node, if not its name; notes: what is told when the pointer is on it.
            colours: of the edges.
            groups: {node: the name under which it is pointed at together with others}.
        Raises:
            ValueError: when there is no edge, or one of its nodes has no place.
        """
        if not edges:
            raise ValueError("edges is empty; it must hold at least one {(sender, receiver): size}")
        missing = sorted({node for edge in edges for node in edge} - set(places))
        if missing:
            raise ValueError(f"these nodes have edges and no place: {', '.join(missing[:5])}")
        self.title, self.n = title, (len(places), len(edges))
        top = max(row for _, row in places.values())
        at = {node: (MARGIN + STEP_X * x, MARGIN + STEP_Y * (top - y)) for node, (x, y) in places.items()}
        width = int(max(x for x, _ in at.values())) + MARGIN + STEP_X // 2
        height = int(max(y for _, y in at.values())) + MARGIN
        largest = max(map(abs, edges.values())) or 1.0
        labels, notes, colours, groups = labels or {}, notes or {}, colours or {}, groups or {}
        drawn = [_edge((at[a], at[b]), (a, b), tuple(groups.get(node, node) for node in (a, b)), size, size / largest,
                       unit, colours.get((a, b), OKABE_ITO[3]))
                 for (a, b), size in sorted(edges.items(), key=lambda item: abs(item[1]))]
        drawn += [_node(at[node], groups.get(node, node), labels.get(node, node), notes.get(node, node))
                  for node in places]
        says = _quoted(f"{title}: a graph of {self.n[0]} nodes and {self.n[1]} edges")
        self.svg = (f'<svg role="img" aria-label="{says}" viewBox="0 0 {width} {height}" width="100%" '
                    f'xmlns="http://www.w3.org/2000/svg" style="background:white"><title>{says}</title>'
                    f'<text x="8" y="16" font-family="sans-serif" font-size="13">{html.escape(title)}</text>'
                    + "".join(drawn) + "</svg>")
        self.html = _PAGE % {"svg": self.svg, "width": width, "unit": html.escape(f" {unit}" if unit else ""),
                             "largest": json.dumps(float(f"{largest:.4g}")), "box": OWN_BOX % {"mark": "data-graph"}}

    def __repr__(self) -> str:
        return f"<graph of {self.n[0]} nodes and {self.n[1]} edges: {self.title}>"

    def _repr_html_(self) -> str:
        return self.html


def interactive_circuit(
    edges: Mapping[tuple[str, str], float], title: str = "", *, unit: str = ""
) -> InteractiveGraph:
    """`plot_circuit` to play with: point at a part to see its edges alone, move the slider to hide the small ones.

    A head has a small node for each of its readers. Args and errors: as `plot_circuit`.
    """
    places = circuit_places(edges)
    heads = {part: re.sub(r"\.[qkv]$", "", part) for part in places}
    joined: dict[tuple[str, str], float] = {}
    colours = {}
    for (sender, receiver), size in edges.items():
        way = receiver[-1] if receiver.count(".") == 2 else ""
        node = f"{heads[receiver]} {way}".strip()
        joined[sender, node] = size
        colours[sender, node] = edge_colour(receiver)
    spread = {"q": -0.22, "k": 0.0, "v": 0.22}
    at = {}
    for part, (x, y) in places.items():
        at[heads[part]] = (x, y)
        if part != heads[part]:
            at[f"{heads[part]} {part[-1]}"] = (x + spread[part[-1]], y - 0.62)
    readers = [node for node in at if node[-2:] in (" q", " k", " v")]
    notes = {node: f"head {node[:-2]} reads its {INTO[node[-1]]} here" for node in readers}
    labels = {node: node[-1] for node in notes}
    return InteractiveGraph(at, joined, title=title, unit=unit, labels=labels, notes=notes, colours=colours,
                            groups={node: node[:-2] for node in notes})


def interactive_attribution_graph(
    graph: AttributionGraph, tokens: Sequence[str], names: Mapping[Node, str] | None = None, title: str = "", *,
    notes: Mapping[Node, str] | None = None,
) -> InteractiveGraph:
    """`plot_attribution_graph` to play with: point at a node to see its edges alone and to read what is known of it.

    Args and errors: as `plot_attribution_graph`.
        notes: what is told when the pointer is on a node, beside its place and value.
    """
    edges = attribution_edges(graph)
    places = {node: (0.6 * x, 1.7 * y) for node, (x, y) in attribution_places(graph).items()}
    told = {str(node): f"{node}, {value:.3g}" + (f": {notes[node]}" if notes and node in notes else "")
            for node, value in zip(graph.nodes, graph.values.tolist())}
    colours = {edge: OKABE_ITO[3 if size > 0 else 1] for edge, size in edges.items()}
    return InteractiveGraph(places, edges, title=title, unit="of the influence", colours=colours, notes=told,
                            labels=attribution_labels(graph, tokens, names))


def _edge(ends: tuple[tuple[float, float], tuple[float, float]], edge: tuple[str, str], groups: tuple[str, ...],
          size: float, share: float, unit: str, colour: str) -> str:
    """A curve between two places, wider and darker for a larger share, with a text."""
    ((x0, y0), (x1, y1)), (sender, receiver) = ends, edge
    bend = 0.0 if abs(y1 - y0) < 1.5 * STEP_Y else 0.12 * (y0 - y1)
    says = html.escape(f"{sender} → {receiver}: {size:.3g}{f' {unit}' if unit else ''}")
    path = f"M{x0:.0f} {y0:.0f}Q{(x0 + x1) / 2 + bend:.0f} {(y0 + y1) / 2:.0f} {x1:.0f} {y1:.0f}"
    style = (f'fill="none" stroke="{colour}" stroke-width="{0.8 + 6 * abs(share):.3f}" '
             f'stroke-opacity="{0.35 + 0.6 * abs(share):.3f}"{DASHES if size < 0 else ""}')
    data = f'data-size="{abs(size):.3g}" data-from="{_quoted(groups[0])}" data-to="{_quoted(groups[1])}"'
    return f'<path d="{path}" {style} {data}><title>{says}</title></path>'


def _node(at: tuple[float, float], group: str, label: str, note: str) -> str:
    """A box with a text."""
    x, y = at
    half, size = max(8.0, 4.0 * len(label) + 5), 9 if len(label) == 1 else 12
    says = f"<title>{html.escape(note)}</title>"
    return (f'<g data-node="{_quoted(group)}" style="cursor:pointer"><rect x="{x - half:.0f}" '
            f'y="{y - size:.0f}" width="{2 * half:.0f}" height="{2 * size}" rx="4" fill="white" stroke="#555"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" font-family="sans-serif" font-size="{size}">'
            f'{html.escape(label)}</text>{says}</g>')


def _quoted(text: str) -> str:
    return html.escape(text, quote=True)
