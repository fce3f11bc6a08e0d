"""Layer x head: where each head looks, and what it prefers."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.attention.head_readings import READINGS, HeadSpecialization, Reading
from lensplug.validation.arguments import checked
from lensplug.views.style import DIVERGING, MODALITY_COLORS, PAPER_TO_DARK, figure, title_text, titled

MEDIA = ("image", "audio", "video")
"""Shown first where there is one."""
NUMBERED = 16
"""Maximum number of heads for which cells have their value written in."""
LABEL = "what each looks at"
"""The button that shows every class at once."""
NOTES = {
    "mass": "Mass, the fraction of its attention: where a head looks; not what it moves, nor what it seeks (uniform"
    " attention has the column on the right)",
    "preference": "Preference, log-odds over chance in nats (0: uniform): what a head seeks; it can look at a class"
    " with most of its mass and prefer another",
    "ratio": "Ratio, mass over chance (colour by its logarithm): at most 1 over chance, so that all heads have about 1"
    " where nearly all positions are alike",
}
"""What can be read from each, and what cannot."""


@checked
def head_specialization(result: HeadSpecialization, *, modality: str | None = None, by: Reading = "mass") -> go.Figure:
    """A heat map of layer x head for one class at a time; one row of buttons for classes, one for readings.

    Mass has one scale from 0 to 1, and a column that shows chance; preference is symmetric around 0. The last button
    of the classes shows every class at once: what each head looks at (or, by preference, prefers). Hover tells all.

    Args:
        result: From `analysis.head_specialization`.
        modality: Which class to show first; "image", "audio" or "video" if there is one, else the first.
        by: Which reading to show first: "mass", "preference" or "ratio".

    Raises:
        LensplugError: If there is no such class.
    """
    shown = (
        modality
        if modality is not None
        else next((name for name in MEDIA if name in result.modalities), result.modalities[0])
    )
    first, first_reading = result._index(shown), READINGS.index(by)
    layers, heads = result.mass.shape[1:3]
    drawn = [_states(result, reading) for reading in READINGS]
    traces = []
    for index, state in enumerate(drawn[first_reading]):
        own = index // 2 == first
        traces.append(go.Heatmap(**state, visible=own, xgap=1, ygap=1))
    fig = figure(*traces, title="", height=100 + 24 * layers)
    titles = {reading: title_text(_title(result), notes) for reading, notes in NOTES.items()}
    titled(fig, _title(result), max(NOTES.values(), key=len))  # room for each
    fig.update_layout(title={"text": titles[by]})
    names = (*result.modalities, LABEL)
    classes = [
        {"label": name, "method": "restyle", "args": [{"visible": [i // 2 == at for i in range(len(traces))]}]}
        for at, name in enumerate(names)
    ]
    # A reading changes numbers and colours, a class what is visible: each leaves the other's choice alone.
    readings = [
        {"label": reading, "method": "update", "args": [_swap(states), {"title.text": titles[reading]}]}
        for reading, states in zip(READINGS, drawn, strict=True)
    ]
    row = {"type": "buttons", "direction": "right", "xanchor": "left", "x": 0, "yanchor": "bottom", "y": 1}
    row |= {"showactive": True, "font": {"size": 11}}
    top = {**row, "buttons": classes, "active": first, "pad": {"b": 38}}
    bottom = {**row, "buttons": readings, "active": first_reading, "pad": {"b": 4}}
    fig.update_layout(updatemenus=[top, bottom], margin={"t": fig.layout.margin.t + 72, "r": 20})
    fig.update_layout(height=fig.layout.height + 72)
    named = list(range(0, heads, max(1, math.ceil(heads / 32))))
    fig.update_xaxes(
        title="head", tickvals=[*named, heads + 0.5], ticktext=[*map(str, named), "chance"],
        range=[-0.5, heads + 1], constrain="domain", showgrid=False, zeroline=False,
    )  # fmt: skip
    fig.update_yaxes(
        title="layer", dtick=1 if layers <= 32 else 4, autorange="reversed", showgrid=False, zeroline=False
    )
    return fig


def _title(result: HeadSpecialization) -> str:
    counts = result.count[:, [name != "sink" for name in result.modalities]]
    most, examples = int(counts.max()) if counts.numel() else 0, len(result.mass)
    of = f"{examples} example{'s' if examples > 1 else ''}"
    return f"Attention from the query position ({of if most in (0, examples) else f'up to {most} of {of}'})"


def _states(result: HeadSpecialization, reading: Reading) -> list[dict[str, Any]]:
    """For each class, then for all together: the map of heads, and beside it the column of chance."""
    layers, heads = result.mass.shape[1:3]
    hover, beside, down = _hover(result), [heads + 0.5], list(range(layers))
    made: list[dict[str, Any]] = []
    chance = result.chance.nanmean(dim=0)
    for index, name in enumerate(result.modalities):
        values, scale = _scaled(result.average(reading)[..., index], reading, chance[:, index])
        made.append(
            {
                "x": list(range(heads)), "y": down, "z": _plain(values), **scale,
                "text": _written(result.average(reading)[..., index], reading, heads),
                "texttemplate": "%{text}", "customdata": hover[index], "hovertemplate": "%{customdata}<extra></extra>",
            }
        )  # fmt: skip
        column = chance[:, index, None]
        known = {"mass": column, "preference": torch.zeros_like(column), "ratio": torch.ones_like(column)}[reading]
        known = known.masked_fill(column.isnan(), math.nan)
        values, scale = _scaled(known, reading, chance[:, index], of=result.average(reading)[..., index])
        made.append(
            {
                "x": beside, "y": down, "z": _plain(values), **scale, "showscale": False,
                "text": _written(known, reading, heads), "texttemplate": "%{text}",
                "customdata": [[f"layer {at}: chance on {name} {float(one):.4f}"] for at, one in enumerate(column)],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )  # fmt: skip
    made += _all_at_once(result, reading)
    return made


def _all_at_once(result: HeadSpecialization, reading: str) -> list[dict[str, Any]]:
    """What each head looks at, or prefers: a colour for each class."""
    labels = result.labels if reading == "mass" else result.prefers
    found = {name for row in labels for name in row}
    names = [name for name in (*result.modalities, "mixed", "nothing") if name in found or name in result.modalities]
    number = {name: index for index, name in enumerate(names)}
    layers, heads = result.mass.shape[1:3]
    scale = [[(at + end) / len(names), MODALITY_COLORS[name]] for at, name in enumerate(names) for end in (0, 1)]
    colours = {
        "colorscale": scale, "zmin": -0.5, "zmax": len(names) - 0.5,
        "colorbar": {"tickvals": list(range(len(names))), "ticktext": names, "thickness": 12, "title": {"text": ""}},
    }  # fmt: skip
    said = [[_br(result.in_words(layer, head)) for head in range(heads)] for layer in range(layers)]
    filled: dict[str, Any] = {
        "x": list(range(heads)), "y": list(range(layers)), "z": [[number[name] for name in row] for row in labels],
        "text": [[""] * heads] * layers, "texttemplate": "%{text}", "customdata": said,
        "hovertemplate": "%{customdata}<extra></extra>", "showscale": True, **colours,
    }  # fmt: skip
    empty = {**filled, "x": [heads + 0.5], "z": [[None]] * layers, "customdata": [[""]] * layers, "showscale": False}
    return [filled, {**empty, "text": [[""]] * layers}]


def _scaled(
    values: Float[Tensor, "layer head"],
    reading: str,
    chance: Float[Tensor, " layer"],
    *,
    of: Float[Tensor, "layer every_head"] | None = None,
) -> tuple[Float[Tensor, "layer head"], dict[str, Any]]:
    """What tells the colour, and the scale: nothing lies beyond its ends, so that heads that differ look different."""
    every = values if of is None else of
    bar: dict[str, Any] = {"thickness": 12, "title": {"text": reading}}
    if reading == "mass":
        known = chance[~chance.isnan()]
        at = sorted({round(float(one), 4) for one in known})
        marks = at if len(at) == 1 else [at[0], at[-1]] if at else []
        ticks = [tick for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) if all(abs(tick - mark) > 0.1 for mark in marks)]
        bar["tickvals"] = [*ticks, *marks]
        bar["ticktext"] = [*(f"{tick:g}" for tick in ticks), *(f"<b>{mark:.3g} chance</b>" for mark in marks)]
        return values, {"colorscale": PAPER_TO_DARK, "zmin": 0, "zmax": 1, "colorbar": bar, "showscale": True}
    if reading == "preference":
        known = every[~every.isnan()].abs()
        limit = float(known.max()) if len(known) and float(known.max()) > 0 else 1.0
        bar["title"] = {"text": "nats"}
        bar |= {"tickvals": None, "ticktext": None}
        return values, {
            "colorscale": DIVERGING, "zmin": -limit, "zmax": limit, "colorbar": bar, "showscale": True,
        }  # fmt: skip
    logs = every[every > 0].log2()
    limit = max(1.0, math.ceil(float(logs.abs().max()))) if len(logs) else 1.0
    steps = [limit * part for part in (-1, -0.5, 0, 0.5, 1)]
    bar |= {"title": {"text": "x chance"}, "tickvals": steps, "ticktext": [f"{2**step:.3g}" for step in steps]}
    shown = values.clamp(min=2**-limit).log2()
    return shown, {"colorscale": DIVERGING, "zmin": -limit, "zmax": limit, "colorbar": bar, "showscale": True}


def _written(values: Float[Tensor, "layer head"], reading: str, heads: int) -> list[list[str]]:
    """The numbers in the cells: three digits of a mass, since 0.985 of the positions may be image."""
    form = {"mass": ".3f", "preference": "+.1f", "ratio": ".2g"}[reading]
    if heads > NUMBERED:
        return [[""] * values.shape[1] for _ in values]
    written = [["" if value != value else format(value, form) for value in row] for row in values.tolist()]
    return [["0.0" if one in ("+0.0", "-0.0") else one for one in row] for row in written]


def _hover(result: HeadSpecialization) -> list[list[list[str]]]:
    """For each class, layer and head."""
    frame = result.to_dataframe()
    layers, heads = result.mass.shape[1:3]
    texts = [
        f"layer {row.layer}, head {row.head}: <b>looks at {row.label}, prefers {row.prefers}</b>"
        f"<br>mass on {row.modality} {row.mass:.4f}{_error(row.mass_standard_error, '.4f')}, chance {row.chance:.4f}"
        f"<br>preference {row.preference:+.2f}{_error(row.preference_standard_error, '.2f')} nats, {row.ratio:.3g} x"
        f" chance<br>entropy inside {row.entropy_nats:.2f} nats, largest weight {row.largest_weight:.3f};"
        f" {row.count} example{'s' if row.count != 1 else ''}"
        for row in frame.itertuples(index=False)
    ]
    classes = len(result.modalities)
    return [
        [[texts[(layer * heads + head) * classes + index] for head in range(heads)] for layer in range(layers)]
        for index in range(classes)
    ]


def _error(value: float, form: str) -> str:
    return "" if value != value else f" ± {value:{form}}"


def _plain(values: Float[Tensor, "layer head"]) -> list[list[float | None]]:
    return [[None if value != value else round(value, 5) for value in row] for row in values.tolist()]


def _swap(states: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A restyle of every trace: an entry for each."""
    changed = ("z", "text", "zmin", "zmax", "colorscale", "colorbar")
    return {name: [state[name] for state in states] for name in changed}


def _br(sentence: str) -> str:
    return sentence.replace(" and prefers", "<br>and prefers")
