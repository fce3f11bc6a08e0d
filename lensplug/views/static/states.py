"""The steps of a slider, each as a figure of its own: a page without scripts shows them side by side."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

MOST = 12
"""Maximum number of pictures in place of a slider."""


def states(fig: go.Figure) -> list[tuple[str, go.Figure]]:
    """The steps of a figure's slider by their names, evenly spread and at most `MOST`; else the figure, without a name.

    Buttons stay as they are at first.
    """
    if not fig.layout.sliders:
        return [("", fig)]
    steps = fig.layout.sliders[0].steps
    chosen = evenly(len(steps), MOST)
    return [(str(steps[index].label), _at(fig, steps[index])) for index in chosen]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers from 0, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(at * (count - 1) / (most - 1)) for at in range(most)})


def _at(fig: go.Figure, step: Any) -> go.Figure:
    traces, layout = (*step.args, {}, {})[:2]
    moved = go.Figure(fig)
    for name, values in dict(traces).items():
        for trace, value in zip(moved.data, values, strict=True):
            trace[name.replace(".", "_")] = value
    for name, value in dict(layout).items():
        moved.layout[name] = value
    moved.update_layout(sliders=[], updatemenus=[])
    return moved
