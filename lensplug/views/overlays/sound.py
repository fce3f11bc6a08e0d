"""Values on audio tokens, on the time axis of the sound, with its waveform and spectrogram."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from lensplug.analysis.regions.region_attribution_result import RegionAttribution
from lensplug.errors import LensplugError
from lensplug.geometry import AudioTimeline
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.media import Sound, load_sound
from lensplug.media.warn import warn_user
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.region_attribution import notes_of
from lensplug.views.overlays.overlay import add_scales, say_measured, scales_of, slider
from lensplug.views.overlays.regions import painted, timeline_of
from lensplug.views.overlays.rows import Rows, rows_at
from lensplug.views.style import FONT, HEAT_SIGNED, MODALITY_COLORS, WHITE_TO_ORANGE, figure, titled

ROUNDED_S = 0.05
"""The largest difference that rounding makes to the length of a sound, in seconds."""
BINS = 200
"""Columns of the heat map; the spectrogram has about as many."""
ROWS = 56
"""Frequency rows of the spectrogram."""
ENVELOPE = 600
"""Number of stretches of time; the waveform is drawn as the lowest and highest sample of each."""
PLAYED_HZ = 16000
"""Sampling rate of the player: sufficient for speech, and small."""
RANGE_DB = 60.0
"""Dynamic range of the spectrogram, below its maximum."""


@checked
def sound_overlay(
    values: Rows,
    inputs: MultimodalInput,
    *,
    sound: Any = None,
    media_index: int = 0,
    example: int = 0,
    title: str = "Over the sound",
) -> go.Figure:
    """Any value per position over the sound, in seconds, with a slider if there are several rows.

    All rows share one scale; a button gives each its own. Top: one bar per audio position, as wide as its direct
    receptive field. Middle: the same values as color behind the waveform, each moment colored by the nearest position.
    Bottom: the spectrogram. Padding after the end of the sound is shaded, and the title states the share of the
    audio's mass on it (of values of both signs, their sums); so is the part of a long sound that the encoder does not
    receive. Values of both signs have a scale symmetric around 0, which is transparent.

    A `region_attribution` is drawn span by span, of the sound that it is of.

    Args:
        values: One value per position of the example (a row of a rollout, of attention, ...), or
            several named rows ("layer 0", ...).
        inputs: The inputs that were analysed.
        sound: The sound, as `lens.prepare` takes it; not needed if `prepare` received it.
        media_index: Which sound of the example.
        example: Which example.
        title: Title of the figure.

    Raises:
        LensplugError: If the family has no timeline, the sound is not available, or there is not one value per
            position.
    """
    of_regions = isinstance(values, RegionAttribution)
    media_index = values.media_index if isinstance(values, RegionAttribution) else media_index
    if isinstance(values, RegionAttribution):
        heard = _sound_of(inputs, sound, media_index, example)
        timeline = timeline_of(values, heard.duration_s, example)
        rows = {"": values.values[example, : len(timeline)]}
    else:
        timeline = _timeline_of(inputs, media_index, example)
        heard = _sound_of(inputs, sound, media_index, example)
        timeline = _of_length(timeline, heard.duration_s)
        rows = rows_at(values, inputs, inputs.modality.audio_positions(media_index, example), example=example)
    fig = make_subplots(rows=3, cols=1, shared_xaxes=True, row_heights=[0.36, 0.28, 0.36], vertical_spacing=0.04)
    row_scales, shared_scale = scales_of(list(rows.values()))
    for index, row in enumerate(rows.values()):
        fig.add_trace(_bars(row, timeline, shown=index == 0), row=1, col=1)
        colors = painted(row, timeline, BINS) if of_regions else timeline.to_seconds(row, bins=BINS)
        fig.add_trace(_heat(colors, timeline.duration_s, shared_scale, shown=index == 0), row=2, col=1)
    fig.add_trace(_waveform(heard), row=2, col=1)
    fig.add_trace(_spectrogram(heard), row=3, col=1)
    _lay_out(fig, title, rows, timeline, heard.duration_s)
    ends = [1.05 * end for end in shared_scale]
    fig.update_yaxes(range=ends, row=1, col=1)
    if len(rows) > 1:
        heat_maps = range(1, 2 * len(rows), 2)  # indices of the heat maps; bars have the even ones
        changes = {"yaxis.range": ends, "yaxis.autorange": False}, {"yaxis.autorange": True}
        add_scales(fig, shared_scale, row_scales, traces=heat_maps, layouts=changes)
        fig.update_layout(title={"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14}})
    if isinstance(values, RegionAttribution):
        fig.update_yaxes(title=values.unit, row=1, col=1)
        titled(fig, title, notes_of(values, example))
    say_measured(fig, timeline.measured, "s")
    return fig


def _sound_of(inputs: MultimodalInput, sound: Any, media_index: int, example: int) -> Sound:
    if sound is not None:
        return load_sound(sound)
    if not inputs.audio:
        raise LensplugError("the sound is not known (encode keeps none): give sound=.")
    check_example(example, len(inputs))
    return load_sound(inputs.audio[example][media_index])


def _timeline_of(inputs: MultimodalInput, media_index: int, example: int) -> AudioTimeline:
    timeline = inputs.modality.audio_timeline(media_index, example)
    if timeline is None:
        raise LensplugError(
            "this family has no geometry yet: its audio tokens cannot be placed in time. lens.locate(inputs).inputs has"
            " measured times."
        )
    return timeline


def _of_length(timeline: AudioTimeline, duration_s: float) -> AudioTimeline:
    """The timeline with the length of this sound, if only the encoder's windows were known; the rest is not heard."""
    if abs(timeline.duration_s - duration_s) <= ROUNDED_S:
        return timeline
    end_s = float(timeline.end_s[-1])
    if timeline.heard_s is None and abs(timeline.duration_s - end_s) <= 1e-3:
        return replace(timeline, duration_s=duration_s, heard_s=end_s if duration_s > end_s else None)
    warn_user(
        f"the sound is {duration_s:.2f} s long, and the one that the processor saw {timeline.duration_s:.2f} s: what is"
        " drawn over it can mislead."
    )
    return timeline


@dataclass(frozen=True)
class Player:
    """An audio player: displayed by a notebook, or part of a page (`body`)."""

    body: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.body


@checked
def sound_player(inputs: MultimodalInput, *, media_index: int = 0, example: int = 0) -> Player:
    """A player of the original sound, in mono.

    Args:
        inputs: From `lens.prepare` with `audio=`.
        media_index: Which sound of the example.
        example: Which example.

    Raises:
        LensplugError: If the sound is not available.
    """
    import soundfile

    if not inputs.audio:
        raise LensplugError("the sound is not known: encode keeps none, lens.prepare does.")
    check_example(example, len(inputs))
    if not 0 <= media_index < len(inputs.audio[example]):
        raise LensplugError(f"example {example} has no sound {media_index}: it has {len(inputs.audio[example])}.")
    sound = inputs.audio[example][media_index].at_rate(PLAYED_HZ)
    buffer = BytesIO()
    soundfile.write(buffer, sound.waveform.numpy(), PLAYED_HZ, format="MP3")
    data = b64encode(buffer.getvalue()).decode()
    return Player(f'<audio controls preload="metadata" src="data:audio/mpeg;base64,{data}"></audio>')


def _bars(row: Float[Tensor, " token"], timeline: AudioTimeline, *, shown: bool) -> go.Bar:
    width = timeline.end_s - timeline.start_s
    return go.Bar(
        x=timeline.center_s.tolist(), y=row.tolist(), width=width.tolist(), visible=shown, showlegend=False,
        marker={"color": MODALITY_COLORS["audio"], "line": {"width": 0}},
        customdata=torch.stack([timeline.start_s, timeline.end_s], dim=1).tolist(),
        hovertemplate="%{customdata[0]:.2f} to %{customdata[1]:.2f} s: %{y:.4f}<extra></extra>",
    )  # fmt: skip


def _heat(colors: Float[Tensor, " bin"], duration_s: float, scale: tuple[float, float], *, shown: bool) -> go.Heatmap:
    step = duration_s / len(colors)
    return go.Heatmap(
        z=[colors.tolist()], x0=step / 2, dx=step, y0=0, dy=2.1, visible=shown, showscale=False,
        colorscale=HEAT_SIGNED if scale[0] < 0 else WHITE_TO_ORANGE, zmin=scale[0], zmax=scale[1],
        hovertemplate="%{x:.2f} s: %{z:.4f}<extra></extra>",
    )  # fmt: skip


def _waveform(sound: Sound) -> go.Scatter:
    """The envelope of the waveform, as a filled outline."""
    loudest = float(sound.waveform.abs().max()) or 1.0
    stretches = (sound.waveform / loudest).tensor_split(min(ENVELOPE, len(sound.waveform)))
    low, high = (torch.stack([edge(part) for part in stretches]) for edge in (torch.min, torch.max))
    time = (torch.arange(len(stretches)) + 0.5) * sound.duration_s / len(stretches)
    return go.Scatter(
        x=_short(torch.cat([time, time.flip(0)]), 4), y=_short(torch.cat([high, low.flip(0)]), 3), fill="toself",
        mode="lines", line={"width": 0.5, "color": "#22252a"}, fillcolor="rgba(34, 37, 42, 0.75)", hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip


def _spectrogram(sound: Sound) -> go.Heatmap:
    """Power in decibels relative to the maximum, up to 8 kHz."""
    window = min(len(sound.waveform), max(64, round(0.032 * sound.sampling_rate)))
    hop = max(window // 4, len(sound.waveform) // BINS)
    spectrum = torch.stft(
        sound.waveform, window, hop, window=torch.hann_window(window), center=True, pad_mode="constant",
        return_complex=True,
    )  # fmt: skip
    power = 10 * (spectrum.abs().square() + 1e-12).log10()
    highest = min(8000.0, sound.sampling_rate / 2)
    up_to_highest = power[: max(2, round(highest / sound.sampling_rate * window))]
    rows = min(ROWS, len(up_to_highest))
    pooled = torch.stack([part.mean(dim=0) for part in up_to_highest.tensor_split(rows)])
    decibels = (pooled - pooled.max()).clamp(min=-RANGE_DB)
    return go.Heatmap(
        z=[_short(row, 1) for row in decibels], x0=0, dx=hop / sound.sampling_rate, y0=highest / rows / 2000,
        dy=highest / rows / 1000, colorscale="Greys", showscale=False,
        hovertemplate="%{x:.2f} s, %{y:.1f} kHz: %{z:.0f} dB<extra></extra>",
    )  # fmt: skip


def _lay_out(fig: go.Figure, title: str, rows: Mapping[str, Tensor], timeline: AudioTimeline, duration: float) -> None:
    heard = "" if timeline.heard_s is None else f", of which {timeline.heard_s:.1f} of {duration:.1f} s are heard"
    stated = {name: f"{title}{heard}{_padding_mass(row, timeline)}" for name, row in rows.items()}
    fig.update_layout(figure(title=next(iter(stated.values())), height=430).layout)
    end = max(float(timeline.end_s[-1]), duration)
    fig.update_xaxes(range=[0, end], showgrid=False)
    fig.update_xaxes(title="seconds", row=3, col=1)
    fig.update_yaxes(title="value", rangemode="tozero", gridcolor="#eceef0", row=1, col=1)
    fig.update_yaxes(range=[-1.05, 1.05], showticklabels=False, row=2, col=1)
    fig.update_yaxes(title="kHz", row=3, col=1)
    if end > duration * 1.001:
        _shade(fig, duration, end, "padding")
    if timeline.heard_s is not None:
        _shade(fig, timeline.heard_s, duration, "not heard")
    if len(rows) > 1:
        of_row = [index for index in range(len(rows)) for _ in ("bars", "heat")] + [
            None,
            None,
        ]  # waveform and spectrogram belong to all
        titles = [{"title.text": row_title} for row_title in stated.values()]
        fig.update_layout(sliders=[slider(list(rows), of_row, titles, room=40)], height=500)


def _shade(fig: go.Figure, start_s: float, end_s: float, text: str) -> None:
    fig.add_vrect(
        x0=start_s, x1=end_s, fillcolor=MODALITY_COLORS["pad"], opacity=0.45, line_width=0, layer="above",
        annotation={"text": text, "font": {"family": FONT, "size": 11}}, annotation_position="top left",
    )  # fmt: skip


def _padding_mass(row: Float[Tensor, " token"], timeline: AudioTimeline) -> str:
    """A note if there is padding; values of both signs have no shares."""
    if not bool(timeline.padding.any()):
        return ""
    if bool((row < 0).any()):
        return f" ({float(row[timeline.padding].sum()):+.3g} of {float(row.sum()):+.3g} is on padding)"
    share = float(row[timeline.padding].sum() / row.sum()) if float(row.sum()) else 0.0
    return f" ({share:.0%} of the audio's mass is on padding)"


def _short(values: Tensor, decimals: int) -> list[float]:
    """Rounded to visible precision, at a third of the bytes."""
    return [round(value, decimals) for value in values.tolist()]
