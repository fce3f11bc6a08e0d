"""Confusion matrices with a modality, with it ablated, and under the control, side by side."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lensplug.analysis.interventions.modality_ablation import CONDITIONS, ModalityAblation
from lensplug.validation.arguments import checked
from lensplug.views.style import figure, visible


@checked
def modality_ablation(result: ModalityAblation) -> go.Figure:
    """Three confusion matrices: correct answers in rows, the model's answers in columns; cells count examples.

    Args:
        result: From `analysis.modality_ablation`.
    """
    summary = result.summary()
    condition_names = {"with": f"with {result.modality}", "without": f"without {result.modality}", "control": "control"}
    titles = [
        f"{condition_names[name]}: {summary.accuracy[name]:.0%} right, F1 {summary.weighted_f1[name]:.2f}"
        + (f", {summary.changed[name]:.0%} changed" if name != "with" else "")
        for name in CONDITIONS
    ]
    fig = make_subplots(rows=1, cols=3, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    names = [visible(name) for name in result.classes]
    highest = int(result.target.bincount().max())
    for column, condition in enumerate(CONDITIONS, start=1):
        counts = result.confusion(condition).to_numpy()
        fig.add_trace(
            go.Heatmap(
                z=counts, x=names, y=names, text=[[str(n) if n else "" for n in row] for row in counts],
                texttemplate="%{text}", colorscale=[[0, "#ffffff"], [1, "#2a9d8f"]], zmin=0, zmax=highest,
                xgap=1, ygap=1, showscale=False, hovertemplate="right: %{y}, given: %{x}: %{z}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip
    title = f"{result.modality} ablated by {result.method}, {len(result.examples)} examples"
    fig.update_layout(figure(title=title, height=180 + 42 * len(names)).layout, margin={"t": 84})
    fig.update_yaxes(autorange="reversed")
    fig.update_yaxes(title="right answer", row=1, col=1)
    fig.update_xaxes(title="answer given")
    fig.update_annotations(font_size=13)
    return fig
