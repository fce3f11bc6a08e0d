"""Grounding: what a medium adds to the log-probability of each token of an answer, as bars."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.interventions.grounding import BLANK, Grounding
from lensplug.validation.arguments import check_example, checked
from lensplug.views.style import CATEGORIES, DIVERGING, figure, titled, visible


@checked
def grounding(result: Grounding, *, example: int = 0) -> go.Figure:
    """One bar for each token of an answer: above 0 the medium made it more probable.

    Args:
        result: From `analysis.grounding`.
        example: Which answer.

    Raises:
        LensplugError: If there is no such example.
    """
    check_example(example, len(result.texts))
    tokens = result.texts[example]
    difference = result.difference[example, : len(tokens)]
    both = [(float(result.with_medium[example, i]), float(result.with_blank[example, i])) for i in range(len(tokens))]
    of_knockout = result.knockout_difference
    signs = [DIVERGING[-1][1] if value >= 0 else DIVERGING[0][1] for value in difference.tolist()]
    fig = figure(
        go.Bar(
            x=list(range(len(tokens))), y=difference.tolist(), customdata=both, name=f"blank {result.medium}",
            width=0.7 if of_knockout is None else 0.35, offset=None if of_knockout is None else -0.36,
            marker={"color": signs if of_knockout is None else CATEGORIES[0]},
            hovertemplate=(
                "%{y:+.3f} nats: %{customdata[0]:.3f} with the " + result.medium + ", %{customdata[1]:.3f} without"
                "<extra></extra>"
            ),
        ),
        title="", height=360,
    )  # fmt: skip
    if of_knockout is not None:
        values = of_knockout[example, : len(tokens)].tolist()
        fig.add_bar(
            x=list(range(len(tokens))), y=values, width=0.35, offset=0.01, name="attention knocked out",
            marker={"color": CATEGORIES[2]}, hovertemplate="%{y:+.3f} nats with attention knocked out<extra></extra>",
        )  # fmt: skip
        fig.update_layout(showlegend=True)
    fig.update_xaxes(tickvals=list(range(len(tokens))), ticktext=[visible(token) for token in tokens], title="token")
    fig.update_xaxes(range=[-0.6, max(len(tokens), 8) - 0.4])  # one token is no wall
    fig.update_yaxes(title="difference in log-probability (nats)", gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    total = float(result.total[example])
    notes = (
        f"Log-probability with the {result.medium} minus that with {BLANK[result.medium]}; of the whole answer"
        f" {total:+.2f} nats"
    )
    titled(fig, f"What the {result.medium} adds to each token", notes)
    return fig
