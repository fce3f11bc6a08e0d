"""Attention of a non-transformer model over its input signal: sensors, waveforms, any time series.

For recurrent or convolutional classifiers with attention over time steps. If batches are zero-padded, the first
question is whether the model attends to padding: the title states the share of attention on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from plotly.subplots import make_subplots
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.validation.arguments import admitted, checked
from lensplug.views.style import FONT, MODALITY_COLORS, WHITE_TO_ORANGE, figure, titled, visible

BAR, ON_PADDING = "#dd6b20", "#6b7280"
LINES = ("#12355b", "#2a7f78")
"""Alternating line colors, to distinguish neighbouring channels."""
CHANNELS = 64
"""Maximum number of channels."""
POINTS = 1500
"""Maximum number of points: a longer signal is drawn as the lowest and highest value of each stretch of time."""
ROUNDING = 2**-8


@checked
def attention_over_signal(
    weights: Any,
    signal: Any,
    *,
    sampling_rate: int | float | None = None,
    channels: Sequence[str] | None = None,
    mask: Any = None,
    stretch: int | None = None,
    title: str = "Attention over the signal",
) -> go.Figure:
    """Weights as bars above the channels, on one time axis; the weights are also the color behind the channels.

    Each channel has its own lane and scale; hover shows its values. Padding is shaded, and the title states the share
    of the weight on it. Padding is defined by `mask`, or else as the leading and trailing steps at which all channels
    are exactly 0.

    Args:
        weights: `[step]`, non-negative. Shares are relative to their sum, which need not be 1.
        signal: `[time channel]` or `[time]`; gaps may be NaN.
        sampling_rate: Values per second; without it the time axis is in steps of the signal.
        channels: Names of the channels; numbers by default.
        mask: `[time]` or `[step]`, 1 where the signal is real, as in an attention mask. Needed if padding is not 0
            (the signal was normalised after padding), or if real values are exactly 0.
        stretch: How many steps of the signal one weight covers, as after a strided convolution; by default as many as
            make the weights cover the whole signal. A stretch that is partly padding counts in part.
        title: Title of the figure.

    Raises:
        LensplugError: If weights are negative, not finite or all 0, or if weights, names or mask do not fit the signal.
    """
    weights, signal = admitted(weights, Tensor, "weights"), admitted(signal, Tensor, "signal")
    mask = admitted(mask, Tensor | None, "mask")
    weight, series = _weights(weights), _series(signal)
    names = _names(channels, series.shape[1])
    stretch = _stretch(len(weight), series, stretch)
    padding = _padding(series, mask, len(weight), stretch)
    if sampling_rate is not None and not 0 < sampling_rate < math.inf:
        raise LensplugError(f"sampling_rate is {sampling_rate}, expected values in each second, above 0.")
    time = Time(len(series), stretch, sampling_rate)
    padding_share = torch.stack([steps.float().mean() for steps in torch.split(padding, stretch)][: len(weight)])
    lane = max(18, 72 - 6 * len(names))
    fig = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.03, row_heights=[130, lane * len(names)],
    )  # fmt: skip
    fig.add_trace(_bars(weight, padding_share, time), row=1, col=1)
    fig.add_trace(_behind(weight, len(names), time), row=2, col=1)
    for index, name in enumerate(names):
        fig.add_trace(_lane(series[:, index], padding, index, name, time), row=2, col=1)
    fig.update_layout(figure(title="", height=210 + lane * len(names)).layout, bargap=0)
    titled(fig, visible(title), _notes(weight, padding_share, padding, time))
    fig.update_xaxes(range=[0, time.of(len(series))], showgrid=False)
    fig.update_xaxes(title=time.unit, row=2, col=1)
    fig.update_yaxes(title="weight", range=[0, 1.05 * float(weight.max())], gridcolor="#eceef0", row=1, col=1)
    fig.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, automargin=True, range=[len(names) - 0.5, -0.5],
        showgrid=False, zeroline=False, row=2, col=1,
    )  # fmt: skip
    for first, stop in _runs(padding):
        fig.add_vrect(
            x0=time.of(first), x1=time.of(stop), fillcolor=MODALITY_COLORS["pad"], opacity=0.45, line_width=0, row=2,
            col=1, annotation_position="top left",
            annotation={"text": "padding", "font": {"family": FONT, "size": 11}, "bgcolor": "rgba(255, 255, 255, 0.8)"},
        )  # fmt: skip
    return fig


@dataclass(frozen=True)
class Time:
    """The time axis."""

    steps: int
    """Number of steps of the signal."""
    stretch: int
    """How many steps of the signal one weight covers."""
    sampling_rate: int | float | None

    @property
    def unit(self) -> str:
        """The unit of the time axis."""
        return "step" if self.sampling_rate is None else "seconds"

    def of(self, step: int | float) -> int | float:
        """When a step of the signal begins."""
        return step if self.sampling_rate is None else step / self.sampling_rate

    def edges(self, count: int) -> list[int | float]:
        """Where each weight begins, and where the last one ends."""
        return [self.of(min(index * self.stretch, self.steps)) for index in range(count + 1)]


def _weights(weights: Any) -> Float[Tensor, " step"]:
    weight = torch.as_tensor(weights).detach().float().cpu()
    if weight.ndim != 1 or len(weight) == 0:
        raise LensplugError(f"weights have the shape {list(weight.shape)}, expected [step]: pass those of one example.")
    if not bool(weight.isfinite().all()):
        raise LensplugError(f"{int((~weight.isfinite()).sum())} of {len(weight)} weights are NaN or infinite.")
    if float(weight.min()) < 0 or float(weight.max()) == 0:
        raise LensplugError(
            f"weights are from {float(weight.min()):.4g} to {float(weight.max()):.4g}, expected none below 0 and some"
            " above: pass attention after the softmax."
        )
    return weight


def _series(signal: Any) -> Float[Tensor, "time channel"]:
    series = torch.as_tensor(signal).detach().float().cpu()
    series = series[:, None] if series.ndim == 1 else series
    if series.ndim != 2 or 0 in series.shape or bool(series.isinf().any()):
        raise LensplugError(
            f"the signal has the shape {list(series.shape)}, expected [time channel] or [time] of one example, finite."
        )
    if series.shape[1] > CHANNELS:
        raise LensplugError(
            f"the signal has {series.shape[1]} channels, at most {CHANNELS} can be drawn: pass some of them,"
            " signal[:, [0, 3]], or signal.T if it is [channel time]."
        )
    return series


def _names(channels: Sequence[str] | None, count: int) -> list[str]:
    if channels is None:
        return [f"channel {index}" for index in range(count)]
    if len(channels) != count:
        raise LensplugError(f"there are {len(channels)} names of channels, the signal has {count}.")
    return [visible(name) for name in channels]


def _stretch(weights: int, series: Float[Tensor, "time channel"], requested: int | None) -> int:
    """How many steps of the signal each weight covers."""
    time = len(series)
    stretch = -(-time // weights) if requested is None else requested
    hint = " Is the signal [channel time]? Pass signal.T." if series.shape[1] >= weights else ""
    if weights > time or stretch < 1:
        raise LensplugError(f"{weights} weights for {time} steps of the signal: expected at most one per step.{hint}")
    if (weights - 1) * stretch >= time:
        raise LensplugError(
            f"{weights} weights for {time} steps of the signal: with {stretch} steps each, the last ones cover nothing."
            f" Pass stretch=, the steps from one weight to the next (the product of the model's strides).{hint}"
        )
    return stretch


def _padding(series: Float[Tensor, "time channel"], mask: Any, weights: int, stretch: int) -> Bool[Tensor, " time"]:
    if mask is None:
        silent = (series == 0).all(dim=1).long()
        return (silent.cumprod(0) + silent.flip(0).cumprod(0).flip(0)).bool()
    real = torch.as_tensor(mask).detach().cpu()
    if real.ndim != 1 or len(real) not in (len(series), weights):
        raise LensplugError(
            f"mask has the shape {list(real.shape)}, expected one value for each of {len(series)} steps of the signal,"
            f" or for each of {weights} weights."
        )
    if not bool(((real == 0) | (real == 1)).all()) or not bool(real.any()):
        raise LensplugError("mask has to be 1 where the signal is real and 0 where it is padding, and 1 somewhere.")
    if len(real) != len(series):
        real = real.repeat_interleave(stretch)[: len(series)]
        real = torch.cat(
            [real, real[-1:].expand(len(series) - len(real))]
        )  # steps that no weight covers are like the last one
    return ~real.bool()


def _runs(padding: Bool[Tensor, " time"]) -> list[tuple[int, int]]:
    """Start and stop of each run of padding."""
    change = torch.diff(padding.int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    return list(zip((change == 1).nonzero()[:, 0].tolist(), (change == -1).nonzero()[:, 0].tolist(), strict=True))


def _notes(weight: Float[Tensor, " step"], padding_share: Float[Tensor, " step"], padding: Tensor, time: Time) -> str:
    """The share of the weight on padding, and other notes."""
    total = float(weight.sum())
    notes = ["no padding (no step at an end where all channels are 0)"]
    if bool(padding.any()):
        share = float((weight * padding_share).sum()) / total
        notes = [f"{share:.1%} of the weight is on padding, which is {float(padding.float().mean()):.1%} of the steps"]
    if time.stretch > 1:
        notes.append(f"each weight covers {time.stretch} steps")
    if abs(total - 1) > ROUNDING:
        notes.append(f"the weights sum to {total:.4g}, shares are of that")
    return "; ".join(notes)


def _bars(weight: Float[Tensor, " step"], padding_share: Float[Tensor, " step"], time: Time) -> go.Bar:
    edges = np.array(time.edges(len(weight)))
    return go.Bar(
        x=(edges[1:] + edges[:-1]) / 2, width=edges[1:] - edges[:-1], y=weight.numpy(), showlegend=False,
        marker={"color": np.where(padding_share.numpy() > 0.5, ON_PADDING, BAR), "line": {"width": 0}},
        customdata=np.stack([edges[:-1], edges[1:], padding_share.numpy()], axis=1),
        hovertemplate=(
            f"{time.unit} %{{customdata[0]:.4~g}} to %{{customdata[1]:.4~g}}: <b>%{{y:.4f}}</b>"
            " (%{customdata[2]:.0%} padding)<extra></extra>"
        ),
    )  # fmt: skip


def _behind(weight: Float[Tensor, " step"], lanes: int, time: Time) -> go.Heatmap:
    return go.Heatmap(
        z=weight.numpy()[None], x=time.edges(len(weight)), y=[-0.5, lanes - 0.5], colorscale=WHITE_TO_ORANGE, zmin=0,
        zmax=float(weight.max()), showscale=False, hoverinfo="skip", opacity=0.75,
    )  # fmt: skip


def _lane(
    values: Float[Tensor, " time"], padding: Bool[Tensor, " time"], lane: int, name: str, time: Time
) -> go.Scatter:
    """A channel scaled to its lane; padding outside the channel's range is clipped."""
    real = values[~padding & ~values.isnan()]
    low, high = (float(real.min()), float(real.max())) if len(real) else (0.0, 0.0)
    half = (high - low) / 2 or 1.0
    times, drawn_values = _points(values)
    scaled = ((drawn_values - (high + low) / 2) / half).clamp(-1, 1)
    return go.Scatter(
        x=[round(time.of(step), 5) for step in times], y=(lane - 0.42 * scaled).numpy(),
        customdata=drawn_values.numpy(),
        mode="lines", line={"width": 1.1, "color": LINES[lane % 2]}, showlegend=False,
        hovertemplate=f"{name}, {time.unit} %{{x:.4~g}}: %{{customdata:.4~g}}<extra></extra>",
    )  # fmt: skip


def _points(values: Float[Tensor, " time"]) -> tuple[list[int | float], Float[Tensor, " point"]]:
    """Each value at the center of its step, or the lowest and highest value of each stretch of time."""
    if len(values) <= POINTS:
        return [step + 0.5 for step in range(len(values))], values
    times, extremes, first = [], [], 0
    for stretch in values.tensor_split(POINTS // 2):
        finite = stretch[~stretch.isnan()]
        extremes += [float(finite.min()), float(finite.max())] if len(finite) else [torch.nan] * 2
        times += [first + len(stretch) * 0.25, first + len(stretch) * 0.75]
        first += len(stretch)
    return times, torch.tensor(extremes)
