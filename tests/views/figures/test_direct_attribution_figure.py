"""Figures of direct attribution hold the result's own numbers, and say what they leave out."""

from __future__ import annotations

import numpy as np
import pytest

from lensplug import LensplugError, analysis, views
from lensplug.views.style import HEAT_SIGNED

TARGET = ("Red", "Blue")


def test_bars_by_layer_stand_between_embedding_and_biases_and_sum_to_the_logit(seen):
    result = analysis.direct_attribution(seen.cache, TARGET)
    fig = views.draw(result)
    attention, mlp, ends = fig.data
    np.testing.assert_allclose(attention.y, result.values[0, :, 0].numpy())
    np.testing.assert_allclose(mlp.y, result.values[0, :, 1].numpy())
    assert sum(sum(trace.y) for trace in fig.data) == pytest.approx(float(result.logit), abs=1e-4)
    assert list(ends.x) == ["embedding", "biases"]
    assert f"{float(result.logit):+.2f}, the logit" in fig.layout.title.text.replace("</sub><br><sub>", " ")
    assert "Red - Blue (1 example)" in fig.layout.title.text


def test_heads_have_a_button_for_each_source_on_one_scale(seen):
    result = analysis.direct_attribution(seen.cache, TARGET, seen.inputs.modality, by="source")
    fig = views.direct_attribution(result, modality="image")
    names = [button.label for button in fig.layout.updatemenus[0].buttons]
    assert names == ["all sources", *result.modalities]
    for name, trace in zip(names, fig.data, strict=True):
        values = result.values[0] if name == "all sources" else result.by_modality()[name][0]
        np.testing.assert_allclose(np.asarray(trace.z, dtype=float), values.numpy(), atol=1e-5)
        assert trace.zmax == -trace.zmin == max(float(values.abs().max()), trace.zmax)
        assert trace.visible == (name == "image")
    assert len({trace.zmax for trace in fig.data}) == 1
    assert not views.draw(analysis.direct_attribution(seen.cache, TARGET, by="head")).layout.updatemenus
    with pytest.raises(LensplugError, match="'video', this result has"):
        views.direct_attribution(result, modality="video")
    with pytest.raises(LensplugError, match="example"):
        views.direct_attribution(result, example=1)


def test_the_strongest_neurons_are_bars_and_the_notes_count_all(seen):
    result = analysis.direct_attribution(seen.cache, TARGET, by="neuron")
    fig = views.draw(result)
    assert len(fig.data[0].x) == 25 and fig.data[0].y[0] == "L{}N{}".format(*result.top(1)[0][:2])
    assert f"all neurons {float(result.values.sum()):+.2f}" in fig.layout.title.text.replace("</sub><br><sub>", " ")


def test_both_signs_lie_over_a_picture_and_a_sound_with_zero_transparent(seen, heard):
    for given, overlay in ((seen, views.image_overlay), (heard, views.sound_overlay)):
        ids = given.inputs.tokens[:, -1], given.inputs.tokens[:, 0]
        result = analysis.direct_attribution(given.cache, ids, given.inputs.modality, by="source")
        fig = overlay(result, given.inputs)
        maps = [trace for trace in fig.data if trace.type == "heatmap" and trace.zmin is not None]
        assert all(trace.zmin == -trace.zmax for trace in maps)
        assert all([list(pair) for pair in trace.colorscale] == HEAT_SIGNED for trace in maps)
        assert str(HEAT_SIGNED[2][1]).endswith("0.0)")
        assert [step.label for step in fig.layout.sliders[0].steps][:2] == ["all", "layer 0"]
