"""Layer x head: which modality each head attends to, and which it prefers relative to chance."""

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
"""Classes that are preferred for the initial view."""
NUMBERED = 16
"""Maximum number of heads for which cells have their value written in."""
LABEL = "what each looks at"
"""The button that shows all classes at once."""
NOTES = {
    "mass": "Mass, the fraction of its attention: where a head looks; not what it moves, nor what it seeks (uniform"
    " attention has the column on the right)",
    "preference": "Preference, log-odds over chance in nats (0: uniform): what a head seeks; it can look at a class"
    " with most of its mass and prefer another",
    "ratio": "Ratio, mass over chance (colour by its logarithm): at most 1 over chance, so that all heads have about 1"
    " where nearly all positions are alike",
}
"""How to read each measure, and what it does not show."""


@checked
def head_specialization(result: HeadSpecialization, *, modality: str | None = None, by: Reading = "mass") -> go.Figure:
    """A layer x head heat map for one class at a time; one row of buttons for classes, one for measures.

    Mass has a scale from 0 to 1 and a column that shows chance; preference is symmetric around 0. The last class button
    shows all classes at once: the class that each head looks at (or prefers). Hover shows all measures.

    Args:
        result: From `analysis.head_specialization`.
        modality: Which class to show first; "image", "audio" or "video" if there is one, else the first.
        by: Which measure to show first: "mass", "preference" or "ratio".

    Raises:
        LensplugError: If there is no such class.
    """
    first_class = (
        modality
        if modality is not None
        else next((name for name in MEDIA if name in result.modalities), result.modalities[0])
    )
    first, first_reading = result._index(first_class), READINGS.index(by)
    layers, heads = result.mass.shape[1:3]
    states_by_reading = [_states(result, reading) for reading in READINGS]
    traces = []
    for index, state in enumerate(states_by_reading[first_reading]):
        is_first_class = index // 2 == first
        traces.append(go.Heatmap(**state, visible=is_first_class, xgap=1, ygap=1))
    fig = figure(*traces, title="", height=100 + 24 * layers)
    titles = {reading: title_text(_title(result), notes) for reading, notes in NOTES.items()}
    titled(fig, _title(result), max(NOTES.values(), key=len))  # reserves room for the longest
    fig.update_layout(title={"text": titles[by]})
    names = (*result.modalities, LABEL)
    classes = [
        {
            "label": name,
            "method": "restyle",
            "args": [{"visible": [trace // 2 == class_index for trace in range(len(traces))]}],
        }
        for class_index, name in enumerate(names)
    ]
    # Measures change numbers and colors, classes change visibility: the two menus do not interfere.
    readings = [
        {"label": reading, "method": "update", "args": [_swap(states), {"title.text": titles[reading]}]}
        for reading, states in zip(READINGS, states_by_reading, strict=True)
    ]
    row = {"type": "buttons", "direction": "right", "xanchor": "left", "x": 0, "yanchor": "bottom", "y": 1}
    row |= {"showactive": True, "font": {"size": 11}}
    top = {**row, "buttons": classes, "active": first, "pad": {"b": 38}}
    bottom = {**row, "buttons": readings, "active": first_reading, "pad": {"b": 4}}
    fig.update_layout(updatemenus=[top, bottom], margin={"t": fig.layout.margin.t + 72, "r": 20})
    fig.update_layout(height=fig.layout.height + 72)
    labelled_heads = list(range(0, heads, max(1, math.ceil(heads / 32))))
    fig.update_xaxes(
        title="head", tickvals=[*labelled_heads, heads + 0.5], ticktext=[*map(str, labelled_heads), "chance"],
        range=[-0.5, heads + 1], constrain="domain", showgrid=False, zeroline=False,
    )  # fmt: skip
    fig.update_yaxes(
        title="layer", dtick=1 if layers <= 32 else 4, autorange="reversed", showgrid=False, zeroline=False
    )
    return fig


def _title(result: HeadSpecialization) -> str:
    counts = result.count[:, [name != "sink" for name in result.modalities]]
    largest_count, examples = int(counts.max()) if counts.numel() else 0, len(result.mass)
    example_count = f"{examples} example{'s' if examples > 1 else ''}"
    if largest_count not in (0, examples):
        example_count = f"up to {largest_count} of {example_count}"
    return f"Attention from the query position ({example_count})"


def _states(result: HeadSpecialization, reading: Reading) -> list[dict[str, Any]]:
    """For each class, then for all classes at once: the heat map of heads, and the chance column next to it."""
    layers, heads = result.mass.shape[1:3]
    hover, chance_column_x, layer_numbers = _hover(result), [heads + 0.5], list(range(layers))
    states: list[dict[str, Any]] = []
    chance = result.chance.nanmean(dim=0)
    for index, name in enumerate(result.modalities):
        values, scale = _scaled(result.average(reading)[..., index], reading, chance[:, index])
        states.append(
            {
                "x": list(range(heads)), "y": layer_numbers, "z": _plain(values), **scale,
                "text": _written(result.average(reading)[..., index], reading, heads),
                "texttemplate": "%{text}", "customdata": hover[index], "hovertemplate": "%{customdata}<extra></extra>",
            }
        )  # fmt: skip
        column = chance[:, index, None]
        reference = {"mass": column, "preference": torch.zeros_like(column), "ratio": torch.ones_like(column)}[reading]
        reference = reference.masked_fill(column.isnan(), math.nan)
        values, scale = _scaled(reference, reading, chance[:, index], of=result.average(reading)[..., index])
        states.append(
            {
                "x": chance_column_x, "y": layer_numbers, "z": _plain(values), **scale, "showscale": False,
                "text": _written(reference, reading, heads), "texttemplate": "%{text}",
                "customdata": [
                    [f"layer {layer}: chance on {name} {float(value):.4f}"] for layer, value in enumerate(column)
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )  # fmt: skip
    states += _all_at_once(result, reading)
    return states


def _all_at_once(result: HeadSpecialization, reading: str) -> list[dict[str, Any]]:
    """The class that each head looks at, or prefers: one color per class."""
    labels = result.labels if reading == "mass" else result.prefers
    present = {name for row in labels for name in row}
    names = [name for name in (*result.modalities, "mixed", "nothing") if name in present or name in result.modalities]
    number = {name: index for index, name in enumerate(names)}
    layers, heads = result.mass.shape[1:3]
    scale = [[(at + end) / len(names), MODALITY_COLORS[name]] for at, name in enumerate(names) for end in (0, 1)]
    colours = {
        "colorscale": scale, "zmin": -0.5, "zmax": len(names) - 0.5,
        "colorbar": {"tickvals": list(range(len(names))), "ticktext": names, "thickness": 12, "title": {"text": ""}},
    }  # fmt: skip
    hover_texts = [[_br(result.in_words(layer, head)) for head in range(heads)] for layer in range(layers)]
    filled: dict[str, Any] = {
        "x": list(range(heads)), "y": list(range(layers)), "z": [[number[name] for name in row] for row in labels],
        "text": [[""] * heads] * layers, "texttemplate": "%{text}", "customdata": hover_texts,
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
    """The plotted values and their color scale, whose ends include all values so that no two heads saturate."""
    scale_values = values if of is None else of
    bar: dict[str, Any] = {"thickness": 12, "title": {"text": reading}}
    if reading == "mass":
        finite = chance[~chance.isnan()]
        chance_levels = sorted({round(float(value), 4) for value in finite})
        marks = (
            chance_levels if len(chance_levels) == 1 else [chance_levels[0], chance_levels[-1]] if chance_levels else []
        )
        ticks = [tick for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) if all(abs(tick - mark) > 0.1 for mark in marks)]
        bar["tickvals"] = [*ticks, *marks]
        bar["ticktext"] = [*(f"{tick:g}" for tick in ticks), *(f"<b>{mark:.3g} chance</b>" for mark in marks)]
        return values, {"colorscale": PAPER_TO_DARK, "zmin": 0, "zmax": 1, "colorbar": bar, "showscale": True}
    if reading == "preference":
        finite = scale_values[~scale_values.isnan()].abs()
        limit = float(finite.max()) if len(finite) and float(finite.max()) > 0 else 1.0
        bar["title"] = {"text": "nats"}
        bar |= {"tickvals": None, "ticktext": None}
        return values, {
            "colorscale": DIVERGING, "zmin": -limit, "zmax": limit, "colorbar": bar, "showscale": True,
        }  # fmt: skip
    logs = scale_values[scale_values > 0].log2()
    limit = max(1.0, math.ceil(float(logs.abs().max()))) if len(logs) else 1.0
    steps = [limit * part for part in (-1, -0.5, 0, 0.5, 1)]
    bar |= {"title": {"text": "x chance"}, "tickvals": steps, "ticktext": [f"{2**step:.3g}" for step in steps]}
    logs_clamped = values.clamp(min=2**-limit).log2()
    return logs_clamped, {"colorscale": DIVERGING, "zmin": -limit, "zmax": limit, "colorbar": bar, "showscale": True}


def _written(values: Float[Tensor, "layer head"], reading: str, heads: int) -> list[list[str]]:
    """Numbers in the cells; mass has three decimals, since chance may be as high as 0.985."""
    form = {"mass": ".3f", "preference": "+.1f", "ratio": ".2g"}[reading]
    if heads > NUMBERED:
        return [[""] * values.shape[1] for _ in values]
    texts = [["" if value != value else format(value, form) for value in row] for row in values.tolist()]
    return [["0.0" if text in ("+0.0", "-0.0") else text for text in row] for row in texts]


def _hover(result: HeadSpecialization) -> list[list[list[str]]]:
    """Hover texts, by class, layer and head."""
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
    """A restyle of all traces, one entry each."""
    changed = ("z", "text", "zmin", "zmax", "colorscale", "colorbar")
    return {name: [state[name] for state in states] for name in changed}


def _br(sentence: str) -> str:
    return sentence.replace(" and prefers", "<br>and prefers")
