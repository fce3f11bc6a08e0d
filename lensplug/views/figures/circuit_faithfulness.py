"""Faithfulness and completeness of a circuit, as bars."""

from __future__ import annotations

import plotly.graph_objects as go
import torch

from lensplug.analysis.interventions.circuit_faithfulness import CircuitFaithfulness
from lensplug.validation.arguments import checked
from lensplug.views.style import CATEGORIES, figure, titled


@checked
def circuit_faithfulness(result: CircuitFaithfulness) -> go.Figure:
    """Two bars for each example: the share of the effect that the circuit has alone, and that of all other heads.

    Args:
        result: From `analysis.circuit_faithfulness`.
    """
    examples = list(range(len(result.all_heads)))
    bars = (
        ("faithfulness: the circuit alone", result.faithfulness, result.circuit, CATEGORIES[2]),
        ("completeness: all other heads", result.completeness, result.complement, CATEGORIES[1]),
    )
    fig = figure(
        *(
            go.Bar(
                x=examples, y=share.tolist(), name=name, marker={"color": color},
                customdata=torch.stack([values, result.all_heads, result.no_heads], dim=1).tolist(),
                hovertemplate=(
                    "%{y:.3f} of the effect: target %{customdata[0]:.3f}, with all heads %{customdata[1]:.3f}, with"
                    " none %{customdata[2]:.3f}<extra></extra>"
                ),
            )
            for name, share, values, color in bars
        ),
        title="", height=360,
    )  # fmt: skip
    fig.update_xaxes(tickvals=examples, ticktext=[str(example) for example in examples], title="example")
    fig.update_xaxes(range=[-0.6, max(len(examples), 4) - 0.4])  # one example is no wall
    fig.update_yaxes(title="share of the effect of all heads", gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    fig.update_layout(barmode="group", bargap=0.35, legend={"orientation": "h", "y": -0.2, "x": 0})
    notes = (
        f"Other heads ablated ({result.method}); 1: as with all heads, 0: as with none. A circuit that does it alone:"
        " faithfulness 1 and completeness 0"
    )
    titled(fig, f"A circuit of {len(result.heads)} of {result.n_heads} heads", notes)
    return fig
