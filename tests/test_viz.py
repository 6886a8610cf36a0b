"""Pictures: right shapes, labelled axes, nothing drawn twice; widgets: small, escaped, stable."""

import dataclasses
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from course_utils import viz
from course_utils.attribution_graphs import AttributionGraph, Node
from course_utils.viz import charts

TOKENS = ["<bos>", "the", "cat", "</script>"]
PATTERN = torch.tril(torch.ones(4, 4)) / torch.arange(1, 5)[:, None]


def props(widget):
    return json.loads(re.search(r"cv\.render\(box\.id, cv\.\w+, (\{.*\})\);", widget.html).group(1))


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: ("display" or "update", the MIME bundle), in order."""
    calls = []

    class Handle:
        def update(self, data, raw):
            calls.append(("update", data))

    def display(data, raw, display_id=None):
        calls.append(("display", data))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    return calls


def test_widget_is_small_and_has_tokens_escaped_and_numbers_rounded():
    widget = viz.attention_patterns(TOKENS, PATTERN[None] + 1e-6)
    assert len(widget.html) < 2000
    assert props(widget)["tokens"] == ["&lt;bos&gt;&nbsp;", "the&nbsp;", "cat&nbsp;", "&lt;/script&gt;&nbsp;"]
    assert props(widget)["attention"][0][2] == [0.3333, 0.3333, 0.3333, 0.0]


def test_a_picture_says_what_it_shows_where_it_cannot_be_seen():
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib_inline.backend_inline import select_figure_formats

    shell = InteractiveShell()
    select_figure_formats(shell, {"png"})                                   # as in a notebook
    picture = viz.plot_curves([("loss (nats)", [3.0, 1.0]), ("share", {"clean": [0.0, 1.0], "patched": [1.0, 0.0]})],
                              xlabel="step", title="Training")
    data, metadata = shell.display_formatter.format(picture)
    words = "Training. loss (nats) by step. share by step: clean, patched."
    assert data["text/plain"] == f"<{words}>" and metadata["image/png"] == {"alt": words} and data["image/png"]


def test_tokens_that_bring_their_own_spaces_get_none():
    widget = viz.attention_patterns(["<bos>", " the", " cat", "s"], PATTERN[None])
    assert props(widget)["tokens"] == ["&lt;bos&gt;", " the", " cat", "s"]


def test_widget_does_not_depend_on_noise_below_the_digits_kept():
    exact, noisy = (viz.attention_patterns(TOKENS, PATTERN[None] + noise) for noise in (0, 1e-7))
    assert exact.html == noisy.html


def test_no_text_can_end_the_script():
    widget = viz.Widget("AttentionPatterns", tokens=["</script><b>"])
    assert widget.html.count("</script>") == 1
    assert props(widget)["tokens"] == ["</script><b>"]


def test_compact_mode_sends_the_small_form_only(shown, monkeypatch):
    monkeypatch.setenv("COURSE_VIZ", "compact")
    widget = viz.attention_patterns(TOKENS, PATTERN[None])
    widget._ipython_display_()
    assert shown == [("display", {"text/html": widget.html, "text/plain": "<AttentionPatterns widget>"})]


def test_live_mode_sends_the_bundle_and_leaves_the_small_form(shown, monkeypatch):
    monkeypatch.setenv("COURSE_VIZ", "live")
    widget = viz.attention_patterns(TOKENS, PATTERN[None])
    widget._ipython_display_()
    assert [kind for kind, _ in shown] == ["display", "update"]
    assert "window.CircuitsVis=(" in shown[0][1]["text/html"] and len(shown[0][1]["text/html"]) > 500_000
    assert shown[1][1]["text/html"] == widget.html


def test_bundle_is_one_script_element():
    assert viz.bundle_script().count("</script>") == 1 and viz.bundle_script().endswith("</script>")


def test_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_VIZ", "tiny")
    with pytest.raises(ValueError, match="'live' or 'compact'"):
        viz.attention_patterns(TOKENS, PATTERN[None])._ipython_display_()


def test_attention_picture():
    figure = viz.plot_attention(PATTERN, TOKENS, "head 1.2")
    axes, bar = figure.axes
    assert np.allclose(axes.images[0].get_array(), PATTERN)
    assert [t.get_text() for t in axes.get_xticklabels()] == TOKENS
    assert axes.get_title() == "head 1.2" and "key" in axes.get_xlabel() and "query" in axes.get_ylabel()
    assert bar.get_ylabel() == "attention probability"


def test_long_sequences_get_fewer_labels_each_at_its_own_position():
    n = 101
    axes = viz.plot_attention(np.eye(n), [f"t{i}" for i in range(n)]).axes[0]
    labels = [t.get_text() for t in axes.get_xticklabels()]
    assert len(labels) <= viz.charts.MAX_TICKS
    assert labels == [f"t{int(x)}" for x in axes.get_xticks()]


def test_head_scores_are_annotated_up_to_64_heads():
    small = viz.plot_head_scores(torch.tensor([[0.1, 0.91], [0.5, -0.001]]), "induction").axes
    assert [t.get_text() for t in small[0].texts] == ["0.10", "0.91", "0.50", "0.00"]
    assert (small[0].get_xlabel(), small[0].get_ylabel()) == ("head", "layer")
    assert small[1].get_ylabel() == "mean attention probability"
    assert not viz.plot_head_scores(np.zeros((9, 9))).axes[0].texts


def test_annotations_contrast_with_their_cells():
    dark, light = viz.plot_head_scores([[0.0, 1.0]]).axes[0].texts
    assert (dark.get_color(), light.get_color()) == ("white", "black")


def test_colour_scale():
    assert viz.plot_head_scores([[0.2, 0.4]]).axes[0].images[0].get_clim() == (0, 1)
    assert viz.plot_head_scores([[0.2, 0.4]], vmax=None).axes[0].images[0].get_clim() == (0, 0.4)
    diverging = viz.plot_head_scores([[-0.5, np.nan]], vmax=None, diverging=True).axes[0].images[0]
    assert diverging.get_clim() == (-0.5, 0.5)


def test_lines_by_position():
    values = {"clean": torch.arange(4.0), "patched": torch.zeros(4)}
    axes = viz.plot_by_position(values, "log-probability (nats)", boundary=2).axes[0]
    clean, patched, boundary = axes.lines
    assert list(clean.get_xdata()) == [0, 1, 2, 3] and list(clean.get_ydata()) == [0, 1, 2, 3]
    assert clean.get_color() != patched.get_color() and clean.get_linestyle() != patched.get_linestyle()
    assert boundary.get_xdata() == [2, 2]
    assert [t.get_text() for t in axes.get_legend().texts] == ["clean", "patched", "second copy starts"]
    assert axes.get_ylabel() == "log-probability (nats)" and axes.get_xlabel() == "position in the sequence"


def test_lines_over_training_steps():
    lines = {"a": [1, 2, 3], "b": [2, 2, 2]}
    axes = viz.plot_by_position(lines, "nats", markers=True, errors={"b": [0.5, 1, 0]}).axes[0]
    assert [line.get_marker() for line in axes.lines[:1]] == ["o"]
    bars = [bar.get_segments() for bar in axes.collections]
    assert [[float(low[1]), float(high[1])] for low, high in bars[0]] == [[1.5, 2.5], [1.0, 3.0], [2.0, 2.0]]
    axes = viz.plot_by_position({"score": [0.1, 0.9]}, "score", x=[0, 500], xlabel="training step").axes[0]
    assert list(axes.lines[0].get_xdata()) == [0, 500] and axes.get_xlabel() == "training step"


def test_likeliest_next_tokens_of_the_first_distribution():
    first, second = torch.tensor([0.1, 0.2, 0.6, 0.1, *[0] * 8]), np.array([0.7, 0.1, *[0] * 9, 0.2])
    axes = viz.plot_next_tokens({"truth": first, "model": second}, ["a", "b", "$", *"defghijkl"]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [r"\$", "b", "a", *"defghij"] and axes.yaxis_inverted()
    for series, expected in zip(axes.containers, ([0.6, 0.2, 0.1, 0.1, *[0] * 6], [0, 0.1, 0.7, *[0] * 7])):
        assert [bar.get_width() for bar in series] == pytest.approx(expected)
    assert [t.get_text() for t in axes.get_legend().texts] == ["truth", "model"]
    middles = [[bar.get_y() + bar.get_height() / 2 for bar in series] for series in axes.containers]
    assert np.mean(middles, axis=0) == pytest.approx(range(10))         # the bars of a token lie around its name
    assert len(viz.plot_next_tokens({"one": [0.5, 0.5]}, "ab").axes[0].patches) == 2


def test_points_against_the_diagonal():
    axes = charts.plot_scatter(torch.tensor([1.0, 3.0]), [0.5, 2.0], "exact (nats)", "estimated (nats)").axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[1, 0.5], [3, 2]]
    diagonal, = axes.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0.5, 3]
    assert [t.get_text() for t in axes.get_legend().texts] == ["equal"]


def test_bars_by_name_from_the_top_a_colour_for_each_series():
    figure = charts.plot_bars({"one": {"a": 1, "b": 2}, "two": {"a": -3, "b": 4}}, "score (nats)")
    axes, = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"] and axes.yaxis_inverted()
    assert [[bar.get_width() for bar in series] for series in axes.containers] == [[1, 2], [-3, 4]]
    colours = [{bar.get_facecolor() for bar in series} for series in axes.containers]
    assert len(colours[0]) == len(colours[1]) == 1 and colours[0] != colours[1]
    middles = [[bar.get_y() + bar.get_height() / 2 for bar in series] for series in axes.containers]
    assert np.mean(middles, axis=0) == pytest.approx([0, 1])
    assert [t.get_text() for t in figure.legends[0].texts] == ["one", "two"]
    alone = charts.plot_bars({"one": {"a": 1, "b": 1000}}, "parameters")
    assert not alone.legends and alone.axes[0].get_legend() is None


def test_a_bar_with_its_interval():
    axes, = charts.plot_bars({"one": {"a": (1, 0.5, 2), "b": 3}}, "score (nats)").axes
    assert [bar.get_width() for bar in axes.patches] == [1, 3]
    interval, = (line for line in axes.lines if list(line.get_xdata()) == [0.5, 2])
    assert interval.get_ydata() == pytest.approx([0, 0])


def test_curves_a_panel_for_each_quantity():
    panels = [("loss (nats)", torch.tensor([3.0, 1.0])), ("share", {"dead": [0.1, 0.2], "dense": [0.3, 0.4]})]
    figure = charts.plot_curves(panels, xlabel="step", x=[0, 500], title="training")
    left, right = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "share"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"step"} and figure.get_suptitle() == "training"
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in left.lines] == [([0, 500], [3, 1])]
    dead, dense = right.lines
    assert list(dead.get_ydata()) == [0.1, 0.2] and list(dense.get_ydata()) == [0.3, 0.4]
    assert dead.get_color() != dense.get_color() and dead.get_linestyle() != dense.get_linestyle()
    assert left.get_legend() is None and [t.get_text() for t in right.get_legend().texts] == ["dead", "dense"]
    plain, = charts.plot_curves([("nats", [5.0, 6.0, 7.0])], xlabel="step").axes
    assert list(plain.lines[0].get_xdata()) == [0, 1, 2]


def test_every_value_is_counted_once():
    axes = charts.plot_histogram(torch.tensor([[0.0, 1.0], [1.0, 4.0]]), "density", "latents", bins=4).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [1, 2, 0, 1]
    assert [bar.get_x() for bar in axes.patches] == [0, 1, 2, 3]


def test_named_points_and_the_line_to_compare_them_with():
    points = {"topk": (8, 0.9), "relu": (30.0, 0.8)}
    axes = charts.plot_points(points, "L0", "score", line=[(40, 0.7), (10, 0.5)], line_label="others").axes[0]
    line, *named = axes.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([10, 40], [0.5, 0.7])
    assert [(*point.get_xdata(), *point.get_ydata()) for point in named] == list(points.values())
    assert [t.get_text() for t in axes.get_legend().texts] == ["others", "topk", "relu"]
    assert axes.get_xscale() == "log" and named[0].get_marker() != named[1].get_marker()
    assert len(charts.plot_points(points, "L0", "score").axes[0].lines) == 2


def test_a_circuit_has_an_arrow_for_each_edge_thicker_for_a_larger_one():
    edges = {("embed", "0.1.v"): 2.0, ("0.1", "mlp 0"): -1.0, ("mlp 0", "logits"): 0.5, ("0.1", "1.0.q"): 0.1}
    figure = charts.plot_circuit(edges, "a circuit", unit="nats")
    axes, = figure.axes
    arrows = sorted(each.arrow_patch.get_linewidth() for each in axes.texts if each.__class__.__name__ == "Annotation")
    assert len(arrows) == 4 and len(set(arrows)) == 4
    places = {each.get_text(): each.get_position() for each in axes.texts if each.get_text()}
    assert set(places) == {"embed", "0.1", "mlp 0", "1.0", "logits"}
    heights = [places[part][1] for part in ("embed", "0.1", "mlp 0", "1.0", "logits")]
    assert heights == sorted(heights) and len(set(heights)) == 5
    assert "embed → 0.1.v 2, 0.1 → mlp 0 -1" in figure.alt() and "(nats)" in figure.alt()


def small_graph():
    """A word, a feature that it drives, one that is inhibited at the same place, the logit: sizes by hand."""
    nodes = (Node("feature", 0, 1, 7), Node("feature", 1, 1, 9), Node("error", 0, 1), Node("embedding", -1, 0, 5),
             Node("embedding", -1, 1, 6), Node("logit", 2, 1, 0))
    edges = torch.zeros(6, 6)
    edges[0, 3], edges[1, 0], edges[1, 4] = 2.0, -3.0, 1.0
    edges[5, 0], edges[5, 1], edges[5, 2] = 1.0, 2.0, -1.0
    numbers = torch.arange(6.0)
    return AttributionGraph(nodes, edges, numbers, numbers, torch.zeros(6, 2), torch.tensor([0, 0, 0, 0, 0, 2.0]),
                            torch.tensor([5, 6]), (3,))


def test_an_attribution_graph_has_its_shares_signs_and_places():
    """Half of the answer comes from feature 9, of which three quarters from feature 7; the error is against."""
    graph = small_graph()
    edges = charts.attribution_edges(graph)
    assert edges == pytest.approx({
        ("feature 1/9 at 1", "logit 0 at 1"): 0.5, ("feature 0/7 at 1", "logit 0 at 1"): 0.25,
        ("error 0 at 1", "logit 0 at 1"): -0.25, ("feature 0/7 at 1", "feature 1/9 at 1"): -0.375,
        ("embedding at 1", "feature 1/9 at 1"): 0.125, ("embedding at 0", "feature 0/7 at 1"): 0.625})
    places = charts.attribution_places(graph)
    assert len(set(places.values())) == 6
    assert [places[str(node)][1] for node in graph.nodes] == [1, 2, 1, 0, 0, 3]
    assert places["embedding at 0"][0] < min(x for node, (x, _) in places.items() if node.endswith("at 1"))
    figure = charts.plot_attribution_graph(graph, ["Julia", "sat"], {graph.nodes[1]: "she"}, "why")
    texts = {each.get_text() for each in figure.axes[0].texts if each.get_text()}
    assert texts == {"Julia", "sat", "she", "0/7", "error", "logit"}
    arrows = {each.arrow_patch.get_linestyle() for each in figure.axes[0].texts
              if each.__class__.__name__ == "Annotation"}
    assert len(arrows) == 2 and "inhibits" in figure.alt()
    notes = {graph.nodes[1]: "a woman <acts>"}
    drawn = viz.interactive_attribution_graph(graph, ["Julia", "sat"], title="why", notes=notes)
    assert drawn.n == (6, 6) and drawn.svg.count("stroke-dasharray") == 2
    assert "feature 1/9 at 1, 1: a woman &lt;acts&gt;" in drawn.svg and "0.625 of the influence" in drawn.svg
    assert "http" not in drawn.html.replace("http://www.w3.org/2000/svg", "")
    with pytest.raises(ValueError, match="no edge"):
        charts.plot_attribution_graph(dataclasses.replace(graph, edges=0 * graph.edges), ["Julia", "sat"])


DRAWINGS = {  # each with the labels of its axes
    "attention": (lambda **k: viz.plot_attention(PATTERN, TOKENS, **k),
                  "key: the position looked at", "query: the position that looks"),
    "head scores": (lambda **k: viz.plot_head_scores([[0.5]], columns="position", **k), "position", "layer"),
    "by position": (lambda **k: viz.plot_by_position({"a": [1, 2]}, "loss (nats)", **k),
                    "position in the sequence", "loss (nats)"),
    "next tokens": (lambda **k: viz.plot_next_tokens({"a": [1.0, 0.0]}, ["x", "y"], **k),
                    "probability of the next token", "token"),
    "scatter": (lambda **k: charts.plot_scatter([1, 2], [3, 4], "exact (nats)", "estimated (nats)", **k),
                "exact (nats)", "estimated (nats)"),
    "bars": (lambda **k: charts.plot_bars({"a": {"x": 1}}, "score (nats)", **k), "score (nats)", ""),
    "curves": (lambda **k: charts.plot_curves([("loss (nats)", [1, 2])], xlabel="step", **k), "step", "loss (nats)"),
    "histogram": (lambda **k: charts.plot_histogram([1, 2], "density (share)", "latents", **k),
                  "density (share)", "number of latents"),
    "points": (lambda **k: charts.plot_points({"a": (1, 2)}, "L0", "loss (nats)", **k), "L0", "loss (nats)"),
    "circuit": (lambda **k: charts.plot_circuit({("embed", "logits"): 1.5}, unit="nats", **k),
                "largest (nats): embed → logits 1.5", "later layers ↑"),
    "attribution graph": (lambda **k: charts.plot_attribution_graph(small_graph(), ["a", "b"], **k),
                          "positions of the prompt →  (solid: adds to its target, dashed: inhibits)\n"
                          "largest (share of the influence): embedding at 0 → feature 0/7 at 1 0.62, "
                          "feature 1/9 at 1 → logit 0 at 1 0.50",
                          "layer of the node"),
}
ON_GIVEN_AXES = ["attention", "head scores", "by position"]


def assert_labelled(figure, axes, xlabel, ylabel):
    assert (axes.get_xlabel(), axes.get_ylabel()) == (xlabel, ylabel)
    assert "a title" in (axes.get_title(), figure.get_suptitle())


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_new_figure_is_labelled_and_closed(name):
    draw, *labels = DRAWINGS[name]
    plt.close("all")
    figure = draw(title="a title")
    assert not plt.get_fignums(), "the notebook would show the figure a second time"
    assert figure.get_figwidth() == viz.WIDTH
    assert_labelled(figure, figure.axes[0], *labels)


@pytest.mark.parametrize("name", ON_GIVEN_AXES)
def test_given_axes_are_labelled_and_left_open(name):
    draw, *labels = DRAWINGS[name]
    plt.close("all")
    own, axes = plt.subplots()
    assert draw(title="a title", ax=axes) is own and plt.get_fignums()
    assert_labelled(own, axes, *labels)
    plt.close("all")


@pytest.mark.parametrize("call, message", [
    (lambda: viz.plot_attention(PATTERN, TOKENS[:3]), r"\(4, 4\); 3 tokens need \[3, 3\]"),
    (lambda: viz.attention_patterns(TOKENS, PATTERN), r"need \[head, 4, 4\]"),
    (lambda: viz.plot_head_scores([1.0, 2.0]), r"must be \[layer, head\]"),
    (lambda: viz.plot_head_scores([[1.0]], vmax=-1), "positive upper end"),
    (lambda: viz.plot_by_position({}, "nats"), "values is empty"),
    (lambda: viz.plot_by_position({"a": [1, 2]}, "nats", x=[1]), r"'a' has shape \(2,\)"),
    (lambda: viz.plot_next_tokens({}, ["x", "y"]), "each distribution needs 2 probabilities"),
    (lambda: viz.plot_next_tokens({"a": [1, 0], "b": [1]}, ["x", "y"]), r"needs 2 probabilities.*'b': \(1,\)"),
    (lambda: viz.plot_next_tokens({"a": [[1, 0]]}, ["x", "y"]), r"'a': \(1, 2\)"),
    (lambda: charts.plot_scatter([1, 2], [1], "nats", "nats"), r"x has shape \(2,\) and y \(1,\)"),
    (lambda: charts.plot_scatter([1, 2], [[1, 2]], "nats", "nats"), r"\(2,\) and y \(1, 2\)"),
    (lambda: charts.plot_scatter([], [], "nats", "nats"), "at least one point"),
    *((lambda values=values: charts.plot_bars(values, "nats"), "the same names, in the same order") for values in (
        {}, {"a": {}}, {"a": {"x": 1}, "b": {}}, {"a": {"x": 1, "y": 2}, "b": {"y": 2, "x": 1}})),
    (lambda: charts.plot_curves([], xlabel="step"), "at least one"),
    (lambda: charts.plot_curves([("nats", [1, 2])], xlabel="step", x=[1]), r"'nats' has shape \(2,\); x has .* \(1,\)"),
    (lambda: charts.plot_curves([("nats", {"a": [1], "b": [[1]]})], xlabel="step"), r"'b' has shape \(1, 1\)"),
    (lambda: charts.plot_histogram([], "share", "latents"), "values is empty"),
    (lambda: charts.plot_points({}, "L0", "nats"), "points is empty"),
    (lambda: charts.plot_circuit({}), "edges is empty"),
    (lambda: charts.plot_circuit({("embed", "head 3"): 1.0}), "there is no part 'head 3'"),
])
def test_bad_input_says_what_would_be_right(call, message):
    plt.close("all")
    with pytest.raises(ValueError, match=message):
        call()
    assert not plt.get_fignums(), "the notebook would show what was begun"
