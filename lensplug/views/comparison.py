"""Two checkpoints side by side, and what is different between them."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lensplug.analysis.compare import Comparison
from lensplug.errors import LensplugError
from lensplug.views.style import DIVERGING, figure, visible

BARS = 400
"""Of what is no map of layer x head, the rows with the largest differences are drawn, at most so many."""


def comparison(
    result: Comparison,
    *,
    number: str | None = None,
    names: tuple[str, str] = ("a", "b"),
    modality: str | None = None,
) -> go.Figure:
    """A map of layer x head for each checkpoint and for the difference; bars for what has no heads.

    Args:
        result: From `analysis.compare`.
        number: What to draw, one of `result.numbers`; the first by default.
        names: What to call the two checkpoints.
        modality: Of a result that has several, which; "audio" or "image" where there is one.

    Raises:
        LensplugError: If the result has no such number or modality.
    """
    number = result.number(number)
    if {"layer", "head"} <= set(result.labels):
        return _maps(result, number, names, modality)
    return _bars(result, number, names)


def _maps(result: Comparison, number: str, names: tuple[str, str], modality: str | None) -> go.Figure:
    table = result.table
    if "modality" in result.labels:
        present = list(dict.fromkeys(table.modality))
        shown = modality or next((name for name in ("audio", "image") if name in present), present[0])
        if shown not in present:
            raise LensplugError(f"modality is {shown!r}, this comparison has {', '.join(present)}.")
        table = table[table.modality == shown]
        number_title = f"{number} on {shown}"
    else:
        number_title = number
    parts = {names[0]: f"{number}_a", names[1]: f"{number}_b", "difference": f"{number}_difference"}
    maps = {name: table.pivot(index="layer", columns="head", values=column) for name, column in parts.items()}
    both = pd.concat([maps[names[0]], maps[names[1]]])
    widest = float(maps["difference"].abs().max().max()) or 1.0
    titles = [*names, f"{names[1]} − {names[0]}"]
    fig = make_subplots(rows=1, cols=3, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    for column, (name, values) in enumerate(maps.items(), start=1):
        is_difference = name == "difference"
        limits = (-widest, widest) if is_difference else (float(both.min().min()), float(both.max().max()))
        fig.add_trace(
            go.Heatmap(
                z=values.round(4).to_numpy(), x=list(values.columns), y=list(values.index),
                colorscale=DIVERGING if is_difference else [[0, "#f7f6f3"], [1, "#12355b"]],
                zmin=limits[0], zmax=limits[1], xgap=1, ygap=1, showscale=column > 1,
                colorbar={"thickness": 10, "x": 0.655 if column == 2 else 1.0, "len": 0.9},
                hovertemplate=f"{name}: layer %{{y}}, head %{{x}}: %{{z:.3f}}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip
    fig.update_layout(
        figure(title=f"{number_title}, two checkpoints", height=190 + 30 * len(maps["difference"])).layout
    )
    fig.update_xaxes(title="head", dtick=1 if len(both.columns) <= 16 else 4)
    fig.update_yaxes(autorange="reversed", dtick=1 if len(both) <= 64 else 4)
    fig.update_yaxes(title="layer", row=1, col=1)
    fig.update_layout(margin={"t": 80})
    return fig


def _bars(result: Comparison, number: str, names: tuple[str, str]) -> go.Figure:
    rows = result.table
    title = f"{number}, two checkpoints"
    if len(rows) > BARS:
        kept = rows[f"{number}_difference"].abs().nlargest(BARS).index.sort_values()
        title += f" (the {BARS} of {len(rows)} rows that differ most)"
        rows = rows.loc[kept]
    telling = [name for name in result.labels if rows[name].nunique() > 1]  # "example" often says nothing
    labels = [", ".join(visible(str(value)) for value in row) for row in rows[telling].itertuples(index=False)]
    at = list(range(len(rows)))
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.05)
    for name, end, color in ((names[0], "a", "#9aa5b1"), (names[1], "b", "#12355b")):
        fig.add_trace(
            go.Bar(
                x=at, y=rows[f"{number}_{end}"].round(5), name=name, marker_color=color, customdata=labels,
                hovertemplate=f"{name}: %{{customdata}}: %{{y:.4f}}<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
    change = rows[f"{number}_difference"]
    fig.add_trace(
        go.Bar(
            x=at, y=change.round(5), name=f"{names[1]} − {names[0]}", customdata=labels,
            marker_color=[DIVERGING[2][1] if value > 0 else DIVERGING[0][1] for value in change],
            hovertemplate="%{customdata}: %{y:+.4f}<extra></extra>",
        ),
        row=2, col=1,
    )  # fmt: skip
    fig.update_layout(figure(title=title, height=440).layout, barmode="group", legend={"orientation": "h", "y": 1.1})
    fig.update_yaxes(gridcolor="#eceef0")
    few = len(rows) <= 40
    fig.update_xaxes(tickvals=at if few else [], ticktext=labels if few else [], tickangle=-45, row=2, col=1)
    fig.update_xaxes(title=", ".join(telling), row=2, col=1)
    return fig
