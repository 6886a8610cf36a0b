"""Pictures of the lessons: the attention widget, charts, and the dashboard of a latent."""

from course_utils.viz.axes import LINE_STYLES, OKABE_ITO, WIDTH, as_array, new_axes
from course_utils.viz.charts import (
    plot_attention,
    plot_attribution_graph,
    plot_bars,
    plot_by_position,
    plot_circuit,
    plot_curves,
    plot_head_scores,
    plot_histogram,
    plot_next_tokens,
    plot_points,
    plot_scatter,
)
from course_utils.viz.dashboards import Dashboard, latent_dashboard
from course_utils.viz.graphs import InteractiveGraph, interactive_attribution_graph, interactive_circuit
from course_utils.viz.widget import Widget, attention_patterns, bundle_script

__all__ = [
    "LINE_STYLES", "OKABE_ITO", "WIDTH", "Dashboard", "InteractiveGraph", "Widget", "as_array",
    "attention_patterns", "bundle_script", "interactive_attribution_graph", "interactive_circuit",
    "latent_dashboard", "new_axes", "plot_attention", "plot_attribution_graph", "plot_bars", "plot_by_position",
    "plot_circuit", "plot_curves", "plot_head_scores", "plot_histogram", "plot_next_tokens", "plot_points",
    "plot_scatter",
]
