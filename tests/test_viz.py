"""Pictures: right shapes, labelled axes, nothing drawn twice; widgets: small, escaped, stable."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from course_utils import viz

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
    assert len(labels) <= viz.MAX_TICKS
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
    axes = viz.plot_by_position({"score": [0.1, 0.9]}, "score", x=[0, 500], xlabel="training step").axes[0]
    assert list(axes.lines[0].get_xdata()) == [0, 500] and axes.get_xlabel() == "training step"


@pytest.mark.parametrize("draw", [
    lambda ax=None: viz.plot_attention(PATTERN, TOKENS, ax=ax),
    lambda ax=None: viz.plot_head_scores([[0.5]], ax=ax),
    lambda ax=None: viz.plot_by_position({"a": [1, 2]}, "nats", ax=ax),
])
def test_a_new_figure_is_closed_and_given_axes_are_left_open(draw):
    plt.close("all")
    figure = draw()
    assert not plt.get_fignums(), "the notebook would show the figure a second time"
    assert figure.get_figwidth() == viz.WIDTH
    own, axes = plt.subplots()
    assert draw(ax=axes) is own and plt.get_fignums()
    plt.close("all")


@pytest.mark.parametrize("call, message", [
    (lambda: viz.plot_attention(PATTERN, TOKENS[:3]), r"\(4, 4\); 3 tokens need \[3, 3\]"),
    (lambda: viz.attention_patterns(TOKENS, PATTERN), r"need \[head, 4, 4\]"),
    (lambda: viz.plot_head_scores([1.0, 2.0]), r"must be \[layer, head\]"),
    (lambda: viz.plot_head_scores([[1.0]], vmax=-1), "positive upper end"),
    (lambda: viz.plot_by_position({}, "nats"), "values is empty"),
    (lambda: viz.plot_by_position({"a": [1, 2]}, "nats", x=[1]), r"'a' has shape \(2,\)"),
])
def test_bad_input_says_what_would_be_right(call, message):
    plt.close("all")
    with pytest.raises(ValueError, match=message):
        call()
