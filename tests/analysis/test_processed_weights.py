"""Every analysis on processed weights: the numbers of the weights as they were trained, or a refusal by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.built import ENGINES
from support.caches import run, text_model, tokens

import lensplug
from lensplug import LensplugError, analysis
from lensplug.analysis.processed_weights import is_folded


@pytest.fixture(scope="module", params=ENGINES)
def pair(request, lens, inputs):
    """A lens and one with processed weights, of one model and engine, and their caches."""
    lenses = [
        lensplug.wrap(lens.hf_model, lens.processor, engine=request.param, process_weights=each)
        for each in (False, True)
    ]
    assert [is_folded(one.model) for one in lenses] == [False, True]
    return lenses, [one.run_with_cache(inputs)[1] for one in lenses]


READ: dict[str, Callable[[Any, Any], Any]] = {
    "raw lens": lambda cache, m: analysis.logit_lens(cache, target=5, final_norm=False),
    "lens": lambda cache, m: analysis.logit_lens(cache, target=5),
    "heads": analysis.head_specialization,
    "written": lambda cache, m: analysis.direct_attribution(cache, (5, 7), m, by="modality"),
    "received": lambda cache, m: analysis.received_attention(cache),
    "matrix": lambda cache, m: analysis.attention_matrix(cache, layer=1),
    "rollout": lambda cache, m: analysis.attention_rollout(cache, rows=-1),
    "values": lambda cache, m: analysis.attention_rollout(cache, rows=-1, head_fusion="value_weighted"),
    "measured": lambda cache, m: analysis.attention_rollout(cache, rows=-1, residual="measured"),
    "flow": lambda cache, m: analysis.attention_flow(
        cache, head_fusion="value_weighted", groups="modality", modality=m
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_of_a_cache_is_the_same(name, pair, inputs):
    """fp32 rounds products of 96 terms otherwise once weights are folded: some 1e-6 of the largest number."""
    first, second = (READ[name](cache, inputs.modality) for cache in pair[1])
    table = analysis.compare(first, second).table
    errors = table.filter(like="standard_error").columns  # of one example there is none
    for column in table.filter(like="_difference").columns.difference(errors):
        scale = table[column.replace("_difference", "_a")].abs().max()
        assert table[column].abs().max() <= 2e-5 * max(1.0, scale), column


def test_the_raw_lens_is_the_residual_times_hugging_faces_head(pair, lens):
    _, cache = pair[1]
    result = analysis.logit_lens(cache, target=5, final_norm=False)
    residual = cache["blocks.1.hook_resid_post"][:, -1]
    expected = lens.hf_model.lm_head(residual).detach().log_softmax(-1)[0, 5]
    assert float(result.log_probability[0, 2, 0]) == pytest.approx(float(expected), abs=1e-4)


def test_what_is_run_is_the_same_or_refused(pair, lens, inputs, picture):
    lenses, _ = pair
    mask = inputs.modality.mask("image")
    curves = [analysis.deletion_curve(one, inputs, mask.float(), 5, steps=1, draws=1) for one in lenses]
    assert torch.allclose(curves[0].most_first, curves[1].most_first, atol=1e-4)
    own = [analysis.Example("What is it?", "Red", images=[picture])]
    first, second = (analysis.modality_ablation(one, own, "image", "zero") for one in lenses)
    assert torch.allclose(first.log_probability, second.log_probability, atol=1e-4)
    other = lens.prepare("What is the color? Answer single word.", images=[picture.transpose(1)])
    options: dict[str, Any] = {"layers": (0, 0), "groups": [analysis_groups(inputs)]}
    found = [analysis.activation_patching(one, inputs, other, (5, 6), **options) for one in lenses]
    assert torch.allclose(found[0].values, found[1].values, atol=1e-3)
    with pytest.raises(LensplugError, match="the logit of a single token .* process_weights=False"):
        analysis.activation_patching(lenses[1], inputs, other, 5, **options)
    _, cache, grads = lenses[1].run_with_gradients(inputs, target=5)
    with pytest.raises(LensplugError, match="gradient_rollout changes under processed weights"):
        analysis.gradient_rollout(cache, grads)


def analysis_groups(inputs):
    from lensplug.positions.groups import Groups

    return Groups(inputs.modality.mask("image")[0].long(), ["text", "image"])


def test_what_transformerlens_alone_has_folded_is_refused():
    model = text_model(positional_embedding_type="standard")
    processed = getattr(model, "process_weights_", None)
    if processed is None:
        pytest.skip("a HookedTransformer's")
    processed()
    _, cache = run(model, tokens(1, 6))
    for ask in (
        lambda: analysis.logit_lens(cache, final_norm=False),
        lambda: analysis.attention_rollout(cache, head_fusion="value_weighted"),
        lambda: analysis.attention_rollout(cache, residual="measured"),
    ):
        with pytest.raises(LensplugError, match="centered weights have removed: load it without processing"):
            ask()
    model = text_model(positional_embedding_type="standard")
    model.process_weights_(center_writing_weights=False)
    _, cache = run(model, tokens(1, 6))
    with pytest.raises(LensplugError, match="has the final norm's weight folded into it"):
        analysis.logit_lens(cache, final_norm=False)
    with pytest.raises(LensplugError, match="may have been folded into the output bias"):
        analysis.attention_rollout(cache, head_fusion="value_weighted")
    analysis.attention_rollout(cache, residual="measured")
