"""Attention over signals: bars where their steps are, padding found and its weight stated, the rest refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensplug import LensplugError, views
from lensplug.views.overlays import signal as drawing


def note(fig) -> str:
    return fig.layout.title.text.replace("</sub><br><sub>", " ")


def series(time=20, channels=3, before=0, behind=0):
    made = torch.randn(time, channels, generator=torch.Generator().manual_seed(0)) + 5
    made[:before] = 0
    made[time - behind :] = 0
    return made


def test_bars_stand_at_their_time_and_channels_have_lanes():
    weights = torch.rand(10).softmax(0)
    fig = views.attention_over_signal(weights, series(), sampling_rate=10, channels=["x", "<y>", "z"])
    bars, behind, *lanes = fig.data
    np.testing.assert_allclose(np.asarray(bars.y), weights.numpy())
    np.testing.assert_allclose(np.asarray(bars.x), np.arange(10) * 0.2 + 0.1)
    np.testing.assert_allclose(np.asarray(bars.width), 0.2)
    np.testing.assert_allclose(np.asarray(behind.z)[0], weights.numpy())
    np.testing.assert_allclose(behind.x, np.arange(11) * 0.2)
    for lane, trace in enumerate(lanes):
        own = series()[:, lane]
        np.testing.assert_allclose(np.asarray(trace.customdata), own.numpy())
        np.testing.assert_allclose(trace.x, (np.arange(20) + 0.5) / 10)
        highest = np.asarray(trace.y).argmin()  # lanes count downwards
        assert highest == int(own.argmax()) and trace.y[highest] == pytest.approx(lane - 0.42)
        assert np.asarray(trace.y).max() == pytest.approx(lane + 0.42)
    assert list(fig.layout.yaxis2.ticktext) == ["x", "&lt;y&gt;", "z"]
    assert fig.layout.xaxis2.title.text == "seconds" and fig.layout.xaxis2.range == (0, 2)
    assert "no padding" in note(fig) and "each weight covers 2 steps" in note(fig)


def test_the_weight_on_zero_padding_is_stated():
    weights = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.4])
    signal = series(time=10, before=2, behind=3)
    fig = views.attention_over_signal(weights, signal)
    # The first two steps, the fourth weight's second step, and the last two: 0.1 + 0.2 / 2 + 0.4.
    assert "60.0% of the weight is on padding, which is 50.0% of the steps" in note(fig)
    assert [(shape.x0, shape.x1) for shape in fig.layout.shapes] == [(0, 2), (7, 10)]
    colors = list(fig.data[0].marker.color)
    assert colors == [drawing.ON_PADDING, drawing.BAR, drawing.BAR, drawing.BAR, drawing.ON_PADDING]
    silent = series(time=10)
    silent[4:6] = 0  # silence in the middle is no padding
    silent[9, 0] = 0  # nor is one channel of several
    assert "no padding" in note(views.attention_over_signal(weights, silent))


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [1] * 6 + [0] * 4, torch.tensor([1, 1, 1, 0, 0]).bool()])
def test_a_mask_says_what_padding_is(mask):
    weights = np.array([1.0, 1.0, 1.0, 2.0, 3.0])
    fig = views.attention_over_signal(weights, series(time=10), mask=mask)
    assert "62.5% of the weight is on padding, which is 40.0% of the steps" in note(fig)
    assert "the weights sum to 8, shares are of that" in note(fig)
    assert [(shape.x0, shape.x1) for shape in fig.layout.shapes] == [(6, 10)]


def test_weights_that_do_not_divide_the_signal():
    assert views.attention_over_signal([0.5, 0.25, 0.25], series(time=8)).data[0].width[2] == 2  # 3, 3 and 2 steps
    fig = views.attention_over_signal([0.5, 0.25, 0.25], series(time=11), stretch=3, mask=[1, 1, 0])
    assert list(fig.data[0].width) == [3, 3, 3]  # the last two steps are under no weight
    assert [(shape.x0, shape.x1) for shape in fig.layout.shapes] == [(6, 11)]
    assert "25.0% of the weight" in note(fig)


def test_long_signals_are_drawn_by_their_extremes_and_gaps_stay_gaps():
    long = torch.zeros(30_000) + 1
    long[12_345], long[20_000] = 9, -7
    long[:100] = torch.nan
    fig = views.attention_over_signal(torch.full((300,), 1 / 300), long)
    lane = fig.data[2]
    known = np.asarray(lane.customdata)
    assert len(known) == drawing.POINTS and np.nanmax(known) == 9 and np.nanmin(known) == -7
    assert lane.x[int(np.nanargmax(known))] == pytest.approx(12_345, abs=40)
    assert np.isnan(known[:4]).all() and not np.isnan(known[10:]).any()
    assert len(fig.to_json()) < 100_000


def test_a_constant_channel_is_a_line_in_the_middle_of_its_lane():
    fig = views.attention_over_signal([0.5, 0.5], torch.full((4, 1), 3.0))
    np.testing.assert_allclose(np.asarray(fig.data[2].y), 0)


REFUSED = {
    "nan": ([0.5, float("nan")], series(), {}, "1 of 2 weights are NaN"),
    "negative": ([0.5, -0.5], series(), {}, "weights are from -0.5 to 0.5, expected none below 0"),
    "nothing": ([0.0, 0.0], series(), {}, "some above"),
    "batch": (torch.rand(2, 20), series(), {}, r"weights have the shape \[2, 20\], expected \[step\]"),
    "too-many": (torch.rand(21), series(), {}, "21 weights for 20 steps of the signal: expected at most one"),
    "turned": (torch.rand(20), series().T, {}, r"20 weights for 3 steps.*channel time\]\? Pass signal.T"),
    "divide": (torch.rand(12), series(), {}, "with 2 steps each, the last ones cover nothing. Pass stretch="),
    "stretch": (torch.rand(5), series(), {"stretch": 5}, "with 5 steps each, the last ones cover nothing"),
    "stretch-0": (torch.rand(5), series(), {"stretch": 0}, "expected at most one per step"),
    "channels": (torch.rand(5), torch.rand(20, 65), {}, "65 channels, at most 64"),
    "signal": (torch.rand(5), torch.rand(1, 20, 3), {}, r"shape \[1, 20, 3\], expected \[time channel\]"),
    "infinite": (torch.rand(5), torch.full((20, 1), torch.inf), {}, "finite"),
    "names": (torch.rand(5), series(), {"channels": ["x"]}, "1 names of channels, the signal has 3"),
    "mask": (torch.rand(5), series(), {"mask": [1, 0]}, r"mask has the shape \[2\], expected one value for each of 20"),
    "lengths": (torch.rand(5), series(), {"mask": [3, 1, 1, 1, 1]}, "mask has to be 1 where the signal is real"),
    "all-padding": (torch.rand(5), series(), {"mask": [0] * 5}, "and 1 somewhere"),
    "rate": (torch.rand(5), series(), {"sampling_rate": 0.0}, "sampling_rate is 0.0, expected"),
}


@pytest.mark.parametrize(("weights", "signal", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(weights, signal, options, message):
    with pytest.raises(LensplugError, match=message):
        views.attention_over_signal(weights, signal, **options)
