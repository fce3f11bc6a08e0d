"""At which layer answers settle: how many examples settle at each layer, and how many have by then."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lensplug.analysis.group_means import GroupMeans
from lensplug.analysis.logits.logit_lens import LogitLens
from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked
from lensplug.views.figures.group_layers import add_lines, color_of, layers_down, layers_of
from lensplug.views.figures.group_means import notes_of
from lensplug.views.style import figure, titled, visible

SETTLED = "settled"


@checked
def settled_layers(result: LogitLens | GroupMeans) -> go.Figure:
    """Left: the share of examples that settle at each layer. Right: the share that have settled by then, with bands.

    An answer has settled at the first layer from which the target (by default the model's own answer) stays the top
    token of the logit lens to the end.

    Args:
        result: From `analysis.logit_lens` of several examples, at one position; or, by group and with intervals,
            `study.result(analysis.logit_lens).mean(by=..., number="settled")`.

    Raises:
        LensplugError: If a mean is of another number, or several positions were read.
    """
    means = _of_lens(result) if isinstance(result, LogitLens) else result
    if means.number != SETTLED:
        raise LensplugError(
            f"the mean is of {means.number!r}, expected that of {SETTLED!r}: study.result(...).mean(number='settled')."
        )
    if set(means.labels) != {"entry"}:
        raise LensplugError(
            "several positions were read, and each settles by itself: read one, analysis.logit_lens(positions=-1)."
        )
    table, groups = means.table, means.groups
    fig = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06, column_widths=[0.4, 0.6])
    for group in groups:
        rows = table[table.group == group]
        newly = np.diff(rows["mean"].to_numpy(), prepend=0.0)
        name = visible(group)
        fig.add_bar(
            x=newly.round(5).tolist(), y=layers_of(rows, "entry"), orientation="h", name=name, legendgroup=name,
            showlegend=False, marker={"color": color_of(group, groups)},
            customdata=rows.entry.tolist(),
            hovertemplate=f"{name}: %{{x:.1%}} settle at %{{customdata}}<extra></extra>", row=1, col=1,
        )  # fmt: skip
    add_lines(fig, table, groups, "entry", form=".1%", col=2)
    fig.update_layout(figure(title="", height=380).layout)
    layers_down(fig, table, "entry")
    fig.update_layout(bargap=0.15, barmode="group", showlegend=len(groups) > 1)
    fig.update_yaxes(title=None, col=2)
    shares = {"tickformat": ".0%", "gridcolor": "#eceef0", "zeroline": False, "tickangle": 0, "nticks": 4}
    fig.update_xaxes(title={"text": "settle at it", "standoff": 4}, rangemode="tozero", **shares, col=1)
    fig.update_xaxes(title={"text": "have settled by it", "standoff": 4}, range=[0, 1.02], **shares, col=2)
    by = f", by {visible(means.group_by)}" if means.group_by else ""
    titled(fig, f"At which layer answers settle{by}", notes_of(means, what="bands"))
    return fig


def _of_lens(result: LogitLens) -> GroupMeans:
    """The shares of a result's examples."""
    numbers = result.over_examples()
    values = numbers.values[SETTLED]
    count, mean = len(values), values.mean(dim=0)
    error = (values.std(dim=0) / count**0.5) if count > 1 else mean * float("nan")
    table = pd.DataFrame(
        {
            "group": "all",
            **numbers.labels,
            "mean": mean.numpy(),
            "standard_error": error.numpy(),
            "low": np.nan,
            "high": np.nan,
            "count": count,
        }
    )
    return GroupMeans(
        table, "logit_lens", SETTLED, "", ("all",), tuple(numbers.labels), "", result.provenance
    )  # fmt: skip
