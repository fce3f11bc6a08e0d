"""Causal tracing is activation patching from a corrupt run that is made here by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.built import ENGINES
from support.models import QUESTION, scene

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.media.blank import blank_image
from lensplug.tiny.voices import make_voice

TARGET = ("Red", "Blue")


@pytest.fixture(scope="module", params=ENGINES)
def tiny(request):
    made = lensplug.tiny.llava_onevision()
    return lensplug.wrap(made.hf_model, made.processor, engine=request.param, check=False)


def traced(lens, inputs, **options):
    return analysis.causal_tracing(lens, inputs, TARGET, progress=False, **options)


def patched(lens, inputs, corrupt, restore="resid_post"):
    return analysis.activation_patching(
        lens, inputs, corrupt, TARGET, activation=restore, groups="modality", progress=False
    )


def test_a_blank_is_a_prompt_with_a_grey_picture(tiny):
    picture = scene(48, 48, 3)
    inputs, grey = (tiny.prepare(QUESTION, images=[each]) for each in (picture, blank_image(picture)))
    found, expected = traced(tiny, inputs, corruption="blank"), patched(tiny, inputs, grey)
    torch.testing.assert_close(found.values, expected.values, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(found.corrupt, expected.corrupt, atol=2e-3, rtol=1e-3)
    assert found.labels == expected.labels and bool(found.standard_error.isnan().all())


def test_noise_is_a_mean_over_draws_of_a_batch(tiny):
    pictures = [scene(48, 48, 3), scene(96, 48, 5)]
    inputs = tiny.prepare([QUESTION] * 2, images=[[picture] for picture in pictures])
    found = traced(tiny, inputs, noise=2.0, draws=2, seed=7, restore="mlp_out")
    each = []
    for draw in range(2):
        embeds, generator = inputs.embeds.clone(), torch.Generator().manual_seed(7 + draw)
        for example, mask in enumerate(inputs.modality.mask("image")):
            own = inputs.embeds[example, mask]
            embeds[example, mask] = own + 2.0 * own.std() * torch.randn(own.shape, generator=generator)
        each.append(patched(tiny, inputs, replace(inputs, embeds=embeds), "mlp_out"))
    values = torch.stack([one.values for one in each])
    torch.testing.assert_close(found.values, values.mean(dim=0), equal_nan=True)
    torch.testing.assert_close(found.standard_error, values.std(dim=0) / 2**0.5, equal_nan=True)
    torch.testing.assert_close(found.corrupt, torch.stack([one.corrupt for one in each]).mean(dim=0))
    assert float((values[0] - values[1]).nan_to_num().abs().max()) > 1e-3, "draws differ"


def test_with_the_picture_put_back_at_the_first_layer_all_is_recovered(tiny):
    inputs = tiny.prepare(QUESTION, images=[scene(48, 48, 3)])
    everything = torch.zeros(inputs.shape[1], dtype=torch.long)
    found = traced(tiny, inputs, draws=1, restore="resid_pre", groups=everything)
    assert float((found.clean - found.corrupt).abs()) > 0.1
    torch.testing.assert_close(found.recovered[0, :, 0, 0], torch.ones(len(found.layers)), atol=1e-3, rtol=0)


def test_a_sound_and_its_table_file_and_figure(tmp_path):
    lens = lensplug.tiny.audio_llama()
    voice = make_voice(random.Random(4), emotion="happy")
    inputs = lens.prepare(voice.prompt("sound"), audio=[voice.audio])
    found = analysis.causal_tracing(lens, inputs, ("Happy", "Sad"), corruption="blank", progress=False)
    at_sound = [index for index, name in enumerate(found.labels[0]) if "audio" in name or "s" in name]
    assert at_sound and {"standard_error", "recovered"} <= set(found.to_dataframe().columns)
    found.save(tmp_path / "traced.safetensors")
    again = lensplug.read(tmp_path / "traced.safetensors")
    assert isinstance(again, analysis.CausalTracing)
    torch.testing.assert_close(again.values, found.values, equal_nan=True)
    assert again.corruption == "blank" and "silent blank" in views.draw(again).layout.title.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.0}, "expected a number above 0"),
        ({"draws": 0}, "draws is 0"),
        ({"medium": "audio"}, "has no audio to corrupt"),
        ({"corruption": "blank"}, "takes one example"),
    ],
)
def test_refusals(lens, batch, options, message):
    with pytest.raises(LensplugError, match=message):
        analysis.causal_tracing(lens, batch[0:2], 5, progress=False, **options)
    with pytest.raises(LensplugError, match="has no image to corrupt"):
        analysis.causal_tracing(lens, batch, 5, progress=False)


def test_a_window_puts_back_its_layers_together(tiny):
    """By plain hooks, at each centre: three layers, clipped at the first and the last."""
    inputs = tiny.prepare(QUESTION, images=[scene(48, 48, 3)])
    corrupt = tiny.prepare(QUESTION, images=[blank_image(scene(48, 48, 3))])
    options: dict[str, Any] = {"activation": "mlp_out", "groups": "modality", "progress": False}
    found = analysis.activation_patching(tiny, inputs, corrupt, TARGET, window=3, **options)
    alone = analysis.activation_patching(tiny, inputs, corrupt, TARGET, **options)
    _, clean = tiny.run_with_cache(inputs, names_filter="mlp_out")
    red, blue = (tiny.tokenizer.encode(word, add_special_tokens=False)[0] for word in TARGET)
    n_layers, group = tiny.model.cfg.n_layers, int(found.recovered[0, 1].nan_to_num().abs().argmax())
    at = (found.groups[0] == group)[None, :, None]
    for layer in range(n_layers):
        window = [near for near in (layer - 1, layer, layer + 1) if 0 <= near < n_layers]
        hooks = [
            (("mlp_out", near), lambda out, hook, value=clean["mlp_out", near]: torch.where(at, value, out))
            for near in window
        ]
        logits = tiny.run_with_hooks(corrupt, fwd_hooks=hooks)[0, -1].detach()
        assert abs(float(logits[red] - logits[blue]) - float(found.values[0, layer, group, 0])) < 2e-3
    assert float((found.values - alone.values).abs().nan_to_num().max()) > 0.05
    assert "3 layers together" in found.provenance.convention and found.layers == alone.layers
    noisy = traced(tiny, inputs, restore="mlp_out", draws=1, window=n_layers * 2)
    assert float((noisy.values - noisy.values[:, :1]).abs().nan_to_num().max()) < 1e-3  # all layers around each
