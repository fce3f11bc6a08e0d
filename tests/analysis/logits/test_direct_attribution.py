"""Direct attribution: equal to TransformerLens's decompositions and to Hugging Face's logits; what it does not sum."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from support.beside import given_of
from support.beside import wrapped as wrapped_beside
from support.built import ENGINES, HOOKED, ONE_ENGINE, ONLY_HOOKED
from support.caches import ROTARY, padded, run, text_model, tokens, word_tokenizer
from support.models import QUESTION, llava_onevision, reference_logits, scene, text_tokens
from support.models import text_model as hf_text_model
from support.tolerances import rounding

import lensplug
from lensplug import LensplugError, analysis
from lensplug.analysis import DirectAttribution, direct_attribution
from lensplug.analysis.logits.direct_attribution_result import By
from lensplug.patches import LogitDirections

EVERY: tuple[By, ...] = ("layer", "head", "neuron", "source")
FORMS: dict[str, dict[str, Any]] = {
    "LN": {"normalization_type": "LN"},
    "LNPre": {"normalization_type": "LNPre"},
    "LN-final-RMS": {"normalization_type": "LN", "final_rms": True},
    "RMS": {"normalization_type": "RMS"},
    "RMSPre": {"normalization_type": "RMSPre"},
    "none": {"normalization_type": None},
    "soft-cap": {"normalization_type": "RMS", "output_logits_soft_cap": 2.0},
    "rotary-GQA": {"n_key_value_heads": 1, **ROTARY},
    "norms-behind": {"normalization_type": "RMS", "use_normalization_before_and_after": True},
    "parallel": {"parallel_attn_mlp": True},
    "attention-only": {"attn_only": True},
    "large-eps": {"eps": 0.5},
}
"""Norms and blocks that HookedTransformer knows."""


def sums_to(result: DirectAttribution, expected: torch.Tensor, atol: float = 1e-4) -> None:
    atol = max(atol, rounding(torch.float32, 24, expected))  # more only where logits are in the thousands: no norm
    torch.testing.assert_close(result.total, expected.float(), atol=atol, rtol=0)
    torch.testing.assert_close(result.logit, expected.float(), atol=atol, rtol=0)
    assert bool(((result.total - result.logit).abs() <= result.tolerance).all())


def sources_of(result: DirectAttribution) -> torch.Tensor:
    assert result.sources is not None
    return result.sources


def before_the_cap(model: Any, logits: torch.Tensor) -> torch.Tensor:
    cap = model.cfg.output_logits_soft_cap
    return logits if cap <= 0 else (logits.double() / cap).atanh() * cap


@pytest.mark.parametrize("by", EVERY)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_components_sum_to_the_logit_and_to_a_difference(form, by):
    if ONE_ENGINE == "bridge" and form.keys() & {
        "use_normalization_before_and_after",
        "parallel_attn_mlp",
        "attn_only",
    }:
        pytest.skip(ONLY_HOOKED)
    if by == "neuron" and "attn_only" in form:
        pytest.skip("there are no neurons")
    model = text_model(**form)
    logits, cache = run(model, tokens(2, 9))
    logits = before_the_cap(model, logits)
    for position in (-1, 3):
        sums_to(direct_attribution(cache, 5, by=by, position=position), logits[:, position, 5])
        pair = direct_attribution(cache, (5, 7), by=by, position=position)
        sums_to(pair, logits[:, position, 5] - logits[:, position, 7])
    assert pair.target_texts == ("5 - 7", "5 - 7")
    assert ("soft cap" in pair.provenance.convention) == ("output_logits_soft_cap" in form)


@pytest.fixture(scope="module", params=ENGINES)
def own(request):
    """A lens of each engine, a padded batch with pictures, and its whole cache."""
    lens = lensplug.wrap(*llava_onevision(), engine=request.param)
    inputs = lens.prepare([QUESTION, "What?"], images=[[scene(48, 48)], [scene(40, 60, 1)]])
    logits, cache = lens.run_with_cache(inputs)
    return lens, inputs, logits, cache


def test_layers_heads_and_neurons_are_transformer_lens_s(own):
    """`decompose_resid`, `stack_head_results` and `get_neuron_results` through `logit_attrs`."""
    lens, _, _, cache = own
    ids, model = torch.tensor([5, 9]), lens.model
    with LogitDirections(model), torch.no_grad():
        stack, names = cache.decompose_resid(pos_slice=-1, return_labels=True)
        layers = cache.logit_attrs(stack, tokens=ids, pos_slice=-1)
        by_head = torch.stack(
            [torch.einsum("bhd,hdm->bhm", cache["z", layer][:, -1], model.blocks[layer].attn.W_O) for layer in range(6)]
        ).transpose(1, 2)  # stack_head_results needs a setting that makes every head's output
        heads = cache.logit_attrs(by_head.flatten(0, 1), tokens=ids, pos_slice=-1)
        neurons = cache.logit_attrs(
            torch.stack([cache["post", 2][:, -1, unit, None] * model.blocks[2].mlp.W_out[unit] for unit in range(8)]),
            tokens=ids,
            pos_slice=-1,
        )
    by_layer = direct_attribution(cache, ids, by="layer")
    found = {"embed": by_layer.others[:, by_layer.other_names.index("embed")]}
    for layer, (attention, mlp) in enumerate(by_layer.values.permute(1, 2, 0)):
        found |= {f"{layer}_attn_out": attention, f"{layer}_mlp_out": mlp}
    expected = dict(zip(names, layers, strict=True))
    assert set(found) == {name for name in expected if name != "bias"}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=1e-4)
    head_values = direct_attribution(cache, ids, by="head").values
    torch.testing.assert_close(head_values.permute(1, 2, 0).flatten(0, 1), heads, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        direct_attribution(cache, ids, by="neuron").values[:, 2, :8].T, neurons, atol=2e-5, rtol=1e-4
    )


@pytest.mark.skipif(not HOOKED or ONE_ENGINE == "bridge", reason=ONLY_HOOKED)
def test_heads_are_stack_head_results():
    model = text_model(normalization_type="LNPre")
    model.set_use_attn_result(True)
    _, cache = run(model, tokens(2, 9))
    stack, names = cache.stack_head_results(pos_slice=-1, return_labels=True)
    expected = cache.logit_attrs(stack, tokens=torch.tensor([3, 4]), pos_slice=-1)
    result = direct_attribution(cache, torch.tensor([3, 4]), by="head")
    torch.testing.assert_close(result.values.permute(1, 2, 0).flatten(0, 1), expected, atol=1e-5, rtol=1e-4)
    assert [name for name in result.to_dataframe().component if name.startswith("L")][:9] == names[:9]


@pytest.mark.parametrize("position", [-1, "image"])
def test_it_sums_to_hugging_faces_logits_also_at_a_patch(own, position):
    lens, inputs, _, cache = own
    logits = reference_logits(lens.hf_model, inputs.model_inputs)
    if position == "image":
        position = [int(inputs.modality.image_positions(example=example)[7]) for example in (0, 1)]
        rows = torch.tensor(position)
    else:
        rows = torch.full((2,), logits.shape[1] - 1)
    at = logits[torch.arange(2), rows]
    for by in EVERY:
        sums_to(direct_attribution(cache, 5, by=by, position=position), at[:, 5])
        sums_to(direct_attribution(cache, (5, 7), by=by, position=position), at[:, 5] - at[:, 7])
    ids = (torch.tensor([5, 6]), torch.tensor([7, 8]))  # others for each example
    expected = at.gather(1, ids[0][:, None])[:, 0] - at.gather(1, ids[1][:, None])[:, 0]
    sums_to(direct_attribution(cache, ids, by="source", position=position), expected)


def test_a_head_from_each_position_is_what_a_hook_computes(own):
    """Pattern times value vector times W_O, through a norm whose scale is held: by hand, for each position alone."""
    lens, inputs, _, cache = own
    held: dict[str, torch.Tensor] = {}

    def keep(value, hook):
        held[hook.name] = value.detach().clone()

    layer, head = 3, 4
    names = [f"blocks.{layer}.attn.hook_{name}" for name in ("pattern", "v")] + ["blocks.5.hook_resid_post"]
    with torch.no_grad():
        lens.model.run_with_hooks(inputs, fwd_hooks=[(name, keep) for name in names])
    pattern, v, last = (held[name] for name in names)
    result = direct_attribution(cache, (5, 7), inputs.modality, by="source")
    norm, W = lens.hf_model.get_decoder().norm, lens.hf_model.lm_head.weight
    for example in (0, 1):
        x = last[example, -1]
        scale = (x.square().mean() + norm.variance_epsilon).sqrt()
        for key in range(0, pattern.shape[-1], 7):
            out = pattern[example, head, -1, key] * v[example, key, head // 3] @ lens.model.blocks[layer].attn.W_O[head]
            expected = (W[5] - W[7]) @ (out / scale * norm.weight)
            found = sources_of(result)[example, layer, head, key]
            torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-4)
    padding = ~inputs.attention_mask.bool()
    assert bool(padding.any()) and float(sources_of(result).transpose(1, 3)[padding].abs().max()) == 0
    torch.testing.assert_close(sources_of(result).sum(dim=-1), result.values, atol=1e-5, rtol=1e-4)
    by_head = direct_attribution(cache, (5, 7), by="head")
    torch.testing.assert_close(result.values, by_head.values, atol=1e-5, rtol=1e-4)


def test_modalities_share_out_the_heads(own):
    _, inputs, _, cache = own
    result = direct_attribution(cache, (5, 7), inputs.modality, by="source")
    masses = result.by_modality()
    image = inputs.modality.mask("image")
    for example in (0, 1):
        expected = sources_of(result)[example][..., image[example]].sum(dim=-1)
        torch.testing.assert_close(masses["image"][example], expected, atol=1e-5, rtol=1e-4)
        first = int(inputs.attention_mask[example].argmax())
        torch.testing.assert_close(masses["sink"][example], sources_of(result)[example, ..., first], atol=0, rtol=0)
    assert set(masses) == {"text", "image", "sink"}
    torch.testing.assert_close(sum(masses.values()), result.values, atol=1e-5, rtol=1e-4)
    without = direct_attribution(cache, (5, 7), inputs, by="modality", sinks=None)
    assert without.sources is None and set(without.by_modality()) == {"text", "image"}


@pytest.mark.parametrize("by", EVERY)
def test_the_light_path_keeps_one_position_and_says_the_same(own, by):
    lens, inputs, logits, cache = own
    needs = partial(direct_attribution, by=by)
    _, light = lens.run_with_cache(
        inputs, needs=needs, query_positions=[-1], residual_positions=[-1], logit_positions=[-1]
    )
    assert light["blocks.0.hook_resid_mid"].shape[1] == 1
    assert not [name for name in light.keys() if name.endswith(("hook_z", "hook_attn_out", "hook_mlp_out"))]
    assert any(name.endswith("mlp.hook_post") for name in light.keys()) == (by == "neuron")
    result = direct_attribution(light, (5, 7), inputs.modality, by=by)
    whole = direct_attribution(cache, (5, 7), inputs.modality, by=by)
    torch.testing.assert_close(result.values, whole.values, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(result.others, whole.others, atol=2e-5, rtol=1e-4)
    sums_to(result, logits[:, -1, 5] - logits[:, -1, 7])
    with pytest.raises(LensplugError, match="reads the positions"):
        direct_attribution(light, (5, 7), inputs.modality, by=by, position=-2)


def test_what_is_not_kept_is_named_with_how_to_keep_it(own):
    lens, inputs, _, _ = own
    _, cache = lens.run_with_cache(inputs, needs=direct_attribution, query_positions=[-1], residual_positions=[-1])
    missing: tuple[tuple[By, str], ...] = (
        ("head", "hook_pattern"), ("source", "hook_pattern"), ("neuron", "mlp.hook_post"),
    )  # fmt: skip
    for by, name in missing:
        with pytest.raises(LensplugError, match=rf"{name}.*needs=partial\(analysis.direct_attribution, by='{by}'\)"):
            direct_attribution(cache, (5, 7), by=by)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["qwen2", "llama-attention-bias", "qwen3-no-gqa-tied", "mistral-window"])
def test_processed_weights_say_the_same(engine, name):
    """Value biases that were folded into b_O are the heads' again; logits of one token are refused there."""
    hf, given = hf_text_model(name), {"input_ids": text_tokens(15, 2)}
    logits = reference_logits(hf, given)[:, -1]
    results = {}
    for processed in (False, True):
        lens = lensplug.wrap(hf, engine=engine, process_weights=processed)
        inputs = lens.encode(given)
        _, cache = lens.run_with_cache(inputs)
        _, light = lens.run_with_cache(
            inputs, needs=partial(direct_attribution, by="head"), query_positions=[-1], residual_positions=[-1]
        )
        for by in EVERY:
            results[by, processed] = direct_attribution(cache, (5, 7), by=by)
            sums_to(results[by, processed], logits[:, 5] - logits[:, 7])
        of_rows = direct_attribution(light, (5, 7), by="head")  # of patterns and values, not of hook_z
        torch.testing.assert_close(of_rows.values, results["head", processed].values, atol=2e-5, rtol=1e-4)
        if processed:
            with pytest.raises(LensplugError, match="single token.*process_weights=False"):
                direct_attribution(cache, 5)
        else:
            sums_to(direct_attribution(cache, 5, by="head"), logits[:, 5])
    for by in EVERY:
        first, second = results[by, False], results[by, True]
        torch.testing.assert_close(first.values, second.values, atol=2e-5, rtol=1e-4)
        assert first.other_names == second.other_names
        torch.testing.assert_close(first.others, second.others, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("processed", [False, True])
def test_norms_that_multiply_by_one_plus_weight_and_norms_behind_attention(processed):
    """Gemma 3, on the bridge; a batch padded at the left, with an image that sees itself whole."""
    hf = wrapped_beside("gemma3").hf_model
    lens = lensplug.wrap(hf, process_weights=processed)
    given = given_of("gemma3")
    inputs = lens.encode(given)
    logits = reference_logits(hf, given)
    _, cache = lens.run_with_cache(inputs)
    patch = int(inputs.modality.image_positions(example=1)[1])
    for position, at in ((-1, logits[:, -1]), ([-1, patch], torch.stack([logits[0, -1], logits[1, patch]]))):
        for by in EVERY:
            result = direct_attribution(cache, (5, 7), inputs.modality, by=by, position=position)
            sums_to(result, at[:, 5] - at[:, 7])


@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_nothing(left):
    model = text_model(**ROTARY)
    rows = [tokens(1, length, seed=length)[0] for length in (4, 9)]
    ids, mask = padded(rows, left=left)
    _, cache = run(model, ids, mask)
    with pytest.raises(LensplugError, match="give attention_mask="):
        direct_attribution(cache, (5, 7))
    for by in EVERY:
        together = direct_attribution(cache, (5, 7), by=by, attention_mask=mask)
        for example, row in enumerate(rows):
            _, alone = run(model, row[None])
            expected = direct_attribution(alone, (5, 7), by=by)
            torch.testing.assert_close(together.values[example], expected.values[0], atol=2e-5, rtol=1e-4)
            assert int(together.rows[example]) == (9 if left else len(row)) - 1


@pytest.mark.parametrize("engine", ENGINES)
def test_in_bfloat16_within_what_rounding_explains(engine):
    """The stream rounds each addition; the tolerance must see that, and no b_O that is forgotten."""
    model, processor = llava_onevision()
    exact_lens = lensplug.wrap(model, processor, engine=engine)
    inputs = exact_lens.prepare(QUESTION, images=[scene(48, 48)])
    exact = direct_attribution(exact_lens.run_with_cache(inputs)[1], (5, 7), by="head")
    lens = lensplug.wrap(model.to(torch.bfloat16), processor, engine=engine)
    inputs = lens.prepare(QUESTION, images=[scene(48, 48)])
    logits, cache = lens.run_with_cache(inputs)
    assert logits is not None
    read = (logits[:, -1, 5] - logits[:, -1, 7]).float()
    for by in EVERY:
        result = direct_attribution(cache, (5, 7), by=by)
        assert float((result.total - result.logit).abs()) < float(result.tolerance) < 0.3
        # Each of the two logits is rounded to the dtype once more.
        assert float((result.logit - read).abs()) < float(result.tolerance) + 0.0079 * float(logits[:, -1].abs().max())
    found = direct_attribution(cache, (5, 7), by="head").values
    assert float((found - exact.values).abs().max()) < 0.1 * float(exact.values.abs().max())


def test_the_logits_of_an_answer_are_added_up(own):
    lens, inputs, _, _ = own
    answer = lens.with_answer(inputs, ["blue circle", "red"])
    logits, cache = lens.run_with_cache(answer.inputs)
    assert logits is not None
    generated = answer.inputs.modality.mask("generated")
    expected = torch.zeros(2)
    for example, column in generated.nonzero().tolist():
        expected[example] += logits[example, column - 1, answer.inputs.tokens[example, column]]
    for by in EVERY:
        sums_to(direct_attribution(cache, answer, by=by), expected, atol=2e-4)
    needs = partial(direct_attribution, by="source")
    rows = direct_attribution(cache, answer).rows
    _, light = lens.run_with_cache(answer.inputs, needs=needs, query_positions=rows, residual_positions=rows)
    sums_to(direct_attribution(light, answer, by="source"), expected, atol=2e-4)
    with pytest.raises(LensplugError, match=r"run on answer\.inputs"):
        direct_attribution(own[3], answer)


@pytest.mark.parametrize("by", ["head", "source", "neuron"])
def test_what_a_hook_has_edited_does_not_sum_and_is_refused(own, by):
    lens, inputs, _, _ = own
    name = "blocks.2.hook_mlp_out" if by == "neuron" else "blocks.2.hook_attn_out"
    with lens.model.hooks(fwd_hooks=[(name, lambda value, hook: value * 0)]):
        _, cache = lens.run_with_cache(inputs)
    by_layer = direct_attribution(cache, (5, 7))
    assert float(by_layer.values[:, 2, 1 if by == "neuron" else 0].abs().max()) < 1e-6  # it says what was added
    with pytest.raises(LensplugError, match="components of example 0 sum to .* the logit is .* A hook has edited"):
        direct_attribution(cache, (5, 7), by=by)


def test_a_head_that_was_ablated_writes_nothing(own):
    lens, inputs, _, _ = own

    def ablate(z, hook):
        z[:, :, 4] = 0
        return z

    with lens.model.hooks(fwd_hooks=[("blocks.3.attn.hook_z", ablate)]):
        logits, cache = lens.run_with_cache(inputs)
    result = direct_attribution(cache, (5, 7), by="head")
    assert float(result.values[:, 3, 4].abs().max()) == 0 and float(result.values[:, 3, 3].abs().min()) > 0
    sums_to(result, logits[:, -1, 5] - logits[:, -1, 7])


def test_the_stream_that_was_steered_between_blocks_is_refused(own):
    """What neither attention nor MLP wrote is nobody's: not given to the layer behind it."""
    lens, inputs, _, _ = own
    with lens.model.hooks(fwd_hooks=[("blocks.3.hook_resid_pre", lambda value, hook: value + 1)]):
        _, cache = lens.run_with_cache(inputs)
    with pytest.raises(LensplugError, match="by layer the components .* sum"):
        direct_attribution(cache, (5, 7))


def test_words_and_what_is_no_target():
    model = text_model()
    model.tokenizer = word_tokenizer()
    _, cache = run(model, tokens(1, 5))
    result = direct_attribution(cache, ("red", "green"))
    assert result.target_texts == ("red - green",) and result.provenance.options["target"] == "'red' - 'green'"
    with pytest.raises(LensplugError, match="expected one"):
        direct_attribution(cache, "red circle")
    with pytest.raises(LensplugError, match="from 0 to 49"):
        direct_attribution(cache, 50)
    with pytest.raises(LensplugError, match="out of range"):
        direct_attribution(cache, 3, position=5)
    with pytest.raises(LensplugError, match="give inputs.modality"):
        direct_attribution(cache, 3, by="modality")
    cache.model = None
    with pytest.raises(LensplugError, match="lost its model"):
        direct_attribution(cache, 3)


def test_the_strongest_and_the_table(own):
    _, inputs, _, cache = own
    heads = direct_attribution(cache, (5, 7), by="head")
    layer, head, value = heads.top(1, example=1)[0]
    assert isinstance(head, int)
    assert value == float(heads.values[1, layer, head]) and abs(value) == float(heads.values[1].abs().max())
    name = direct_attribution(cache, (5, 7)).top(1)[0][1]
    assert name in ("attn_out", "mlp_out")
    for by in (*EVERY, "modality"):
        result = direct_attribution(cache, (5, 7), inputs.modality, by=by)
        table = result.to_dataframe()
        sums = table.groupby("example").attribution.sum()
        assert sums.tolist() == pytest.approx(result.logit.tolist(), abs=2e-4)
        assert not table.duplicated(["example", "component", "source"]).any()
    patch = int(inputs.modality.image_positions(example=1)[3])
    sources = direct_attribution(cache, (5, 7), by="source")
    row = sources.to_dataframe().query(f"example == 1 and component == 'L2H5' and source == {patch}")
    assert row.attribution.item() == pytest.approx(float(sources_of(sources)[1, 2, 5, patch]))
    rows = sources.by_position(1)
    torch.testing.assert_close(rows["all"], sources_of(sources)[1].sum(dim=(0, 1)))
    torch.testing.assert_close(rows["layer 2"], sources_of(sources)[1, 2].sum(dim=0))
    assert sources.by_position(1, heads=[(2, 5)])["L2H5"].equal(sources_of(sources)[1, 2, 5])
    for wrong, said in (([(9, 0)], "layers of 6 heads"), ([], "heads is empty")):
        with pytest.raises(LensplugError, match=said):
            sources.by_position(heads=wrong)
    with pytest.raises(LensplugError, match="by='source'"):
        heads.by_position()
    with pytest.raises(LensplugError, match="without a modality map"):
        sources.by_modality()


def test_an_example_without_a_picture_has_no_image_to_bring_from():
    lens = lensplug.wrap(*llava_onevision())
    inputs = lens.prepare([QUESTION, QUESTION], images=[[scene(48, 48)], []])
    _, cache = lens.run_with_cache(inputs)
    image = direct_attribution(cache, (5, 7), inputs.modality, by="modality").by_modality()["image"]
    assert bool(image[0].isfinite().all()) and bool(image[1].isnan().all())
    other = lens.prepare([QUESTION], images=[[scene(48, 48)]])
    with pytest.raises(LensplugError, match="map"):
        direct_attribution(cache, (5, 7), other.modality, by="modality")


def test_it_is_combined_and_compared(own):
    _, inputs, _, cache = own
    result = direct_attribution(cache, (5, 7), inputs.modality, by="modality")
    twice = DirectAttribution.combine([result, result])
    assert twice.values.shape[0] == 4 and twice.target_texts == result.target_texts * 2
    other = direct_attribution(cache, (5, 8), inputs.modality, by="modality")
    with pytest.raises(LensplugError, match="options"):
        DirectAttribution.combine([result, other])
    assert float(analysis.compare(result, result).table.attribution_difference.abs().max()) == 0
    assert not math.isnan(float(twice.over_examples().values["attribution"].nan_to_num(0).sum()))
