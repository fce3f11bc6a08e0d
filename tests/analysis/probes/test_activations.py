"""Collected activations against Hugging Face's hidden states and against plain loops over a cache."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import pytest
import torch
from support.built import ENGINES
from support.models import QUESTION, scene

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.analysis import Activations
from lensplug.analysis.probes.activations import ENDINGS, Hook

HOOKS = get_args(Hook)


@pytest.fixture(scope="module", params=ENGINES)
def wrapped(request, lens):
    return lensplug.wrap(lens.hf_model, lens.processor, engine=request.param)


@pytest.fixture(scope="module", params=["left", "right"])
def padded(request, wrapped):
    """Three prompts of different lengths, the last without a picture, padded at either side."""
    texts, images = (
        [f"<image>{QUESTION}", f"<image>What is the shape? {QUESTION}", QUESTION],
        [scene(48, 48), scene(80, 64)],
    )
    processed = wrapped.processor(
        text=texts, images=images, padding=True, padding_side=request.param, return_tensors="pt"
    )
    return wrapped.encode(processed)


@pytest.fixture(scope="module")
def everything(wrapped, padded):
    return wrapped.run_with_cache(padded)[1]


def last(inputs: Any) -> list[int]:
    """The last position of each example that is not padding."""
    return [int(row.nonzero()[-1]) for row in inputs.attention_mask]


def test_states_are_those_of_hugging_face(wrapped, padded):
    found = wrapped.hf_model(**padded.model_inputs, output_hidden_states=True)
    states = found.hidden_states  # the last one is normalised
    _, cache = wrapped.run_with_cache(
        padded, needs=[analysis.activations, partial(analysis.activations, hook="resid_pre")]
    )
    after = analysis.activations(cache, padded)
    before = analysis.activations(cache, padded, hook="resid_pre", pool="text")
    for example, position in enumerate(last(padded)):
        is_text = padded.modality.mask("text")[example]
        for layer, state in enumerate(states[:-1]):
            expected = torch.stack([row for row, chosen in zip(state[example], is_text, strict=True) if chosen]).mean(0)
            torch.testing.assert_close(before.vectors[example, layer], expected, atol=1e-4, rtol=1e-4)
            if layer:
                torch.testing.assert_close(
                    after.vectors[example, layer - 1], state[example, position], atol=1e-4, rtol=1e-4
                )


@pytest.mark.parametrize("hook", HOOKS)
def test_vectors_at_a_position_are_the_cache_s(hook, wrapped, padded, everything):
    _, cache = wrapped.run_with_cache(padded, needs=partial(analysis.activations, hook=hook))
    assert {name.split(".", 2)[2] for name in cache.keys()} == {ENDINGS[hook]}
    found = analysis.activations(cache, padded.modality, hook=hook)
    for example, position in enumerate(last(padded)):
        for layer in range(wrapped.model.cfg.n_layers):
            expected = everything[f"blocks.{layer}.{ENDINGS[hook]}"][example, position]
            torch.testing.assert_close(found.vectors[example, layer], expected)
    assert found.hook == hook and found.layers == tuple(range(wrapped.model.cfg.n_layers))
    assert found.positions.tolist() == [1, 1, 1]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("pool", ["text", ["text", "image"]])
def test_means_are_those_of_a_plain_loop(hook, pool, padded, everything):
    found = analysis.activations(everything, padded.modality, hook=hook, pool=pool)
    names = [pool] if isinstance(pool, str) else pool
    for example, kinds in enumerate(padded.modality.position_names):
        chosen = [position for position, kind in enumerate(kinds) if kind in names]
        assert int(found.positions[example]) == len(chosen)
        for layer in found.layers:
            value = everything[f"blocks.{layer}.{ENDINGS[hook]}"]
            expected = sum(value[example, position] for position in chosen) / len(chosen)
            torch.testing.assert_close(found.vectors[example, layer], expected, atol=1e-5, rtol=1e-5)


def test_a_mask_chooses_what_is_pooled_and_padding_is_never_among_it(padded, everything):
    whole = analysis.activations(everything, padded, pool=torch.ones_like(padded.tokens).bool())
    real = analysis.activations(everything, padded, pool=["text", "media"])
    assert torch.equal(whole.positions, padded.attention_mask.sum(dim=1)) and torch.equal(whole.vectors, real.vectors)


def test_positions_of_each_example(padded, everything):
    ends = last(padded)
    found = analysis.activations(everything, padded, position=[end - index for index, end in enumerate(ends)])
    for example, end in enumerate(ends):
        expected = everything["blocks.1.hook_resid_post"][example, end - example]
        assert torch.equal(found.vectors[example, 1], expected)


def test_a_cache_of_chosen_residuals_alone(wrapped, padded, everything):
    needed = partial(analysis.activations, hook="resid_post")
    whole = analysis.activations(everything, padded)
    _, cache = wrapped.run_with_cache(padded, needs=needed, residual_positions=[-2, -1], logit_positions=[-1])
    torch.testing.assert_close(analysis.activations(cache, padded).vectors, whole.vectors)
    with pytest.raises(LensplugError, match="run with residual_positions= that has them"):
        analysis.activations(cache, padded, position=-3)
    one = padded[:1]
    _, cache = wrapped.run_with_cache(one, needs=needed, residual_positions="image")
    pooled = analysis.activations(cache, one, pool="image")
    is_image = padded.modality.mask("image")[0]
    for layer in pooled.layers:
        expected = everything[f"blocks.{layer}.hook_resid_post"][0][is_image].mean(dim=0)
        torch.testing.assert_close(pooled.vectors[0, layer], expected)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_run_without_patterns_has_the_same(hook, wrapped, padded, everything):
    needed = partial(analysis.activations, hook=hook)
    _, cache = wrapped.run_with_cache(padded, needs=needed, query_positions=[], logit_positions=[-1])
    found = analysis.activations(cache, padded, hook=hook, pool="text")
    expected = analysis.activations(everything, padded, hook=hook, pool="text")
    torch.testing.assert_close(found.vectors, expected.vectors, atol=1e-4, rtol=1e-4)


def test_some_layers(padded, everything):
    whole, some = analysis.activations(everything, padded), analysis.activations(everything, padded, layers=[-1, 0])
    n_layers = len(whole.layers)
    assert some.layers == (n_layers - 1, 0)
    assert torch.equal(some.vectors, whole.vectors[:, [n_layers - 1, 0]])


def test_the_dtype_of_the_activations_is_kept_in_the_file(padded, everything, tmp_path):
    half = {name: value.bfloat16() for name, value in everything.items() if name.endswith("hook_resid_post")}
    everything_else = everything.cache_dict
    everything.cache_dict = half
    try:
        found = analysis.activations(everything, padded, pool="text")
    finally:
        everything.cache_dict = everything_else
    assert found.vectors.dtype == torch.bfloat16
    example, chosen = 1, padded.modality.mask("text")[1]
    expected = half["blocks.0.hook_resid_post"][example][chosen].float().mean(dim=0).bfloat16()
    assert torch.equal(found.vectors[example, 0], expected)
    read: Any = lensplug.read(found.save(tmp_path / "half"))
    assert read.vectors.dtype == torch.bfloat16 and torch.equal(read.vectors, found.vectors)


def test_batches_put_together_are_one_batch(wrapped, padded, everything):
    whole = analysis.activations(everything, padded, pool="text")
    parts = [
        analysis.activations(everything.apply_slice_to_batch_dim([index]), padded[index : index + 1], pool="text")
        for index in range(3)
    ]
    both = Activations.combine(parts)
    torch.testing.assert_close(both.vectors, whole.vectors)
    assert torch.equal(both.positions, whole.positions)
    with pytest.raises(LensplugError, match="options"):
        Activations.combine([parts[0], analysis.activations(everything, padded, hook="z")])


def test_one_row_for_each_example_layer_and_head(padded, everything):
    stream, heads = (analysis.activations(everything, padded, hook=hook) for hook in ("mlp_out", "z"))
    table = stream.to_dataframe()
    assert table["head"].unique().tolist() == [-1] and len(table) == 3 * len(stream.layers)
    assert table["norm"].tolist() == pytest.approx(stream.vectors.norm(dim=-1).flatten().tolist())
    table = heads.to_dataframe().set_index(["example", "layer", "head"])
    assert table.loc[(2, 1, 0), "norm"] == pytest.approx(float(heads.vectors[2, 1, 0].norm()))


@pytest.mark.parametrize("hook", ["resid_post", "z"])
def test_the_figure_shows_mean_norms(hook, lens, batch):
    _, cache = lens.run_with_cache(batch, needs=partial(analysis.activations, hook=hook))
    found = analysis.activations(cache, batch, hook=hook)
    norms = found.vectors.norm(dim=-1).mean(dim=0)
    shown = views.draw(found).data[-1]
    values = torch.as_tensor(shown.z) if hook == "z" else torch.as_tensor(shown.x)
    torch.testing.assert_close(values.float(), norms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hook": "k"}, "hook is 'k', expected 'resid_post'"),
        ({"pool": "audio"}, "example 0 has no position that is 'audio'"),
        ({"pool": "image"}, "example 2 has no position that is 'image'"),
        ({"pool": "pad"}, "pool is 'pad', and padding means nothing"),
        ({"pool": "picture"}, "pool is 'picture', expected"),
        ({"pool": "text", "position": 3}, "position=3 and pool='text' both say"),
        ({"position": [0, 1]}, "expected one position, or one for each example"),
        ({"layers": [9]}, "layer is 9"),
        ({"layers": []}, "layers is empty"),
        ({"layers": [0, 0]}, "layers has 0 twice"),
    ],
)
def test_bad_options_are_refused(options, message, padded, everything):
    with pytest.raises(LensplugError, match=message):
        analysis.activations(everything, padded, **options)


def test_a_cache_without_the_hook_says_what_to_type(wrapped, padded):
    _, cache = wrapped.run_with_cache(padded, names_filter="z")
    with pytest.raises(LensplugError, match=r"needs=partial\(analysis.activations, hook='mlp_out'\)"):
        analysis.activations(cache, padded, hook="mlp_out")
    assert analysis.activations(cache, padded, hook="z").vectors.ndim == 4


def test_another_map_and_numbers_that_are_none_are_refused(wrapped, padded, everything):
    with pytest.raises(LensplugError, match="use the map of the inputs that were run"):
        analysis.activations(everything, padded[:2])
    _, cache = wrapped.run_with_cache(padded, names_filter="resid_post")
    cache.cache_dict["blocks.1.hook_resid_post"][1] = torch.inf
    with pytest.raises(LensplugError, match="resid_post of layer 1 hold NaN or infinity"):
        analysis.activations(cache, padded)


def test_a_partial_of_what_is_no_analysis_is_refused(wrapped, padded):
    with pytest.raises(LensplugError, match="needs has 'grounding', expected analyses of a cache"):
        wrapped.run_with_cache(padded, needs=partial(analysis.grounding, medium="image"))
    misspelt: Any = partial(analysis.activations, hook="q")  # type: ignore[arg-type]
    with pytest.raises(LensplugError, match="hook is 'q', expected"):
        wrapped.run_with_cache(padded, needs=misspelt)
    _, cache = wrapped.run_with_cache(padded, needs=partial(analysis.logit_lens, positions=-1))
    assert {name.rpartition(".")[2] for name in cache.keys()} == {"hook_resid_pre", "hook_resid_post"}
