"""Whether neurons matter: effect on the answer, and answers that are right, with none, the chosen, random ones off."""

from __future__ import annotations

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from lensplug.analysis.neurons.neuron_ablation import CONDITIONS, NeuronAblation
from lensplug.analysis.probes.accuracy_interval import wilson
from lensplug.validation.arguments import checked
from lensplug.views.style import CATEGORIES, figure, titled

COLORS = dict(zip(CONDITIONS, ("#59616b", CATEGORIES[1], CATEGORIES[0]), strict=True))
DRAW = "#9a9ea6"
"""Of the single random sets."""
Z = 1.96
"""Standard errors at each side of a mean, for an interval at 95 %."""


@checked
def neuron_ablation(result: NeuronAblation) -> go.Figure:
    """A row for each condition: at the left the mean effect on the answer's log-probability, at the right who is right.

    Lines are intervals at 95 % over examples; small dots are single random sets.

    Args:
        result: From `analysis.neuron_ablation`.
    """
    summary, count = result.summary(), len(result.examples)
    error = [value if value == value else 0.0 for value in (Z * summary.standard_error).tolist()]
    share = torch.tensor(summary.right.tolist(), dtype=torch.float64)
    low, high = wilson(share, torch.full_like(share, count))
    effects, rights = result.effect[2:].double().mean(dim=1), result.right[2:].double().mean(dim=1)
    names = ["none deactivated", "chosen neurons", "random neurons"]
    fig = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06, column_widths=[0.6, 0.4])
    for values, column, unit in ((effects, 1, "%{x:+.3f} nats"), (rights, 2, "%{x:.1%} right")):
        fig.add_scatter(
            x=values.tolist(), y=[2.22] * len(values), mode="markers", name="single random sets of neurons",
            marker={"size": 6, "color": DRAW}, showlegend=column == 1, legendgroup="sets",
            customdata=list(range(len(values))), hovertemplate=f"random set %{{customdata}}: {unit}<extra></extra>",
            row=1, col=column,
        )  # fmt: skip
    for row, condition in enumerate(CONDITIONS):
        color = COLORS[condition]
        point = {"y": [row], "mode": "markers", "marker": {"size": 10, "color": color}, "showlegend": False}
        line = {"type": "data", "thickness": 2, "width": 5, "color": color}
        effect, changed = float(summary.effect.iloc[row]), float(summary.changed.iloc[row])
        fig.add_scatter(
            x=[effect], error_x={**line, "array": [error[row]]}, name=names[row],
            hovertemplate=f"{names[row]}: %{{x:+.3f}} ± {error[row]:.3f} nats<extra></extra>", row=1, col=1, **point,
        )  # fmt: skip
        above, below = float(high[row] - share[row]), float(share[row] - low[row])
        fig.add_scatter(
            x=[float(share[row])], name=names[row],
            error_x={**line, "symmetric": False, "array": [above], "arrayminus": [below]},
            hovertemplate=(
                f"{names[row]}: %{{x:.1%}} right ({float(low[row]):.1%} to {float(high[row]):.1%}), {changed:.1%}"
                " changed<extra></extra>"
            ),
            row=1, col=2, **point,
        )  # fmt: skip
    fig.update_layout(figure(title="", height=300).layout)
    fig.update_layout(margin={"l": 124}, legend={"orientation": "h", "y": -0.3, "x": 0})
    fig.update_xaxes(gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    ends = [side for value, half in zip(summary.effect, error, strict=True) for side in (value - half, value + half)]
    least, most = min(*ends, *effects.tolist()), max(*ends, *effects.tolist())
    room = 0.06 * (most - least) or 1.0
    title = "effect on the answer's log-probability (nats)"
    fig.update_xaxes(title=title, range=[least - room, most + room], row=1, col=1)
    fig.update_xaxes(title="answers right", tickformat=".0%", range=[-0.02, 1.02], row=1, col=2)
    fig.update_yaxes(range=[2.6, -0.5], showgrid=False, zeroline=False)
    fig.update_yaxes(tickvals=[0, 1, 2], ticktext=names, row=1, col=1)
    titled(fig, _title(result), _notes(result))
    return fig


def _title(result: NeuronAblation) -> str:
    count, layers = len(result.neurons), len({layer for layer, _ in result.neurons})
    of = f"{count} neuron{'s' if count > 1 else ''} of {layers} layer{'s' if layers > 1 else ''}"
    return f"{of} deactivated: does the answer change?"


def _notes(result: NeuronAblation) -> str:
    chosen = result.summary().loc["chosen"]
    beyond, error = float(chosen.beyond_random), float(chosen.beyond_random_standard_error)
    effects = result.effect.double().mean(dim=1)
    further = int((effects[2:] > effects[1]).sum())
    count = len(result.examples)
    with_error = f" ± {error:.2f} (standard error)" if error == error else ""
    at = f" at {' and '.join(result.where)} positions" if result.where else ""
    return (
        f"{count} example{'s' if count > 1 else ''}{at}; intervals at 95 % over examples. The chosen neurons against as"
        f" many random ones of the same layers: {beyond:+.2f}{with_error} nats; they lower the answer more than"
        f" {further} of {result.draws} random sets do"
    )
