"""TransformerLens's own tools: given the inputs of a lens they work, given tokens with placeholders they refuse."""

from __future__ import annotations

import pytest
import torch
from support.built import ENGINES, HOOKED
from support.models import QUESTION, largest_difference, llava_onevision, reference_logits, scene
from transformer_lens import patching
from transformer_lens.head_detector import detect_head
from transformer_lens.tools.analysis import (
    JacobianLens,
    attribution_patch,
    direct_logit_attribution,
    get_act_patch_direct_path,
)

import lensplug
from lensplug import LensplugError

needs_4 = pytest.mark.skipif(HOOKED, reason="a tool of TransformerLens 4")
BRIDGE = pytest.mark.parametrize("engine", ["bridge"], indirect=True)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def lens(engine):
    return lensplug.wrap(*llava_onevision(), engine=engine)


@pytest.fixture(scope="module")
def pair(lens):
    """Two prompts with one picture each, in one batch; and with other pictures."""
    prompts = [QUESTION, QUESTION]
    return tuple(lens.prepare(prompts, images=[[scene(48, 48, n)], [scene(48, 48, n + 1)]]) for n in (1, 3))


@pytest.fixture(scope="module")
def one(pair):
    return pair[0][0:1]


def metric(logits):
    return logits[0, -1, 5]


def hf_logits(lens, inputs):
    given = {"inputs_embeds": inputs.embeds, "attention_mask": inputs.attention_mask}
    with torch.no_grad():
        return lens.hf_model(**given, use_cache=False).logits


def test_pieces_of_inputs_are_those_of_tokens(lens, pair):
    clean, _ = pair
    whole = lens.model(clean)
    assert torch.equal(clean[1], clean.tokens[1]) and len(list(clean)) == len(clean) == 2
    for key in (slice(1, 2), [1], torch.tensor([1]), [False, True]):
        assert torch.equal(clean[key].tokens, clean.tokens[1:2])
        assert clean[key].modality.image_grid() == clean.modality.image_grid(example=1)
        assert largest_difference(lens.model(clean[key]), whole[1:2]) < 1e-4
    cut = clean[:, :20]
    assert cut.shape == (2, 20) and len(cut.str_tokens[0]) == 20 and cut.modality.image_grid() is None
    assert largest_difference(lens.model(cut), whole[:, :20]) < 1e-4
    assert torch.equal(clean[0:1].expand(3, -1).embeds, clean.embeds[:1].expand(3, -1, -1))
    assert bool((clean == clean).all()) and not bool((clean == pair[1]).all())
    assert lens.check(clean[0:1]).agrees
    for unknown in ((slice(None), slice(3, 5)), 1.5, "image", (0, 1), slice("a")):
        with pytest.raises(LensplugError, match=r"inputs\[.*\] is not known"):
            clean[unknown]


def test_tokens_with_placeholders_are_refused_by_each(lens, one, engine):
    tools = {
        "attribution_patch": lambda: attribution_patch(lens.model, one.tokens, one.tokens, metric),
        "detect_head": lambda: detect_head(lens.model, "".join(one.str_tokens[0]), "previous_token_head"),
        "patching": lambda: patching.get_act_patch_resid_pre(
            lens.model, one.tokens, lens.run_with_cache(one)[1], metric
        ),
    }
    if engine == "hooked_transformer":  # of a bridge without processed weights TransformerLens refuses by itself
        tools["direct_logit_attribution"] = lambda: direct_logit_attribution(lens.model, one.tokens, 5)
    if not HOOKED:
        from transformer_lens.tools.analysis import logit_lens

        tools["logit_lens"] = lambda: logit_lens(lens.model, one.tokens)
    for name, run in tools.items():
        with pytest.raises(LensplugError, match=r"image placeholder\(s\).*inputs of lens.prepare"):
            run()
            pytest.fail(name)


def test_attribution_patch(lens, pair):
    """What the embeddings of each position carry is what Hugging Face's gradient says."""
    clean, corrupt = pair
    result = attribution_patch(lens.model, clean, corrupt, metric)
    expected = torch.zeros(clean.shape[1])
    for example in range(2):
        embeds = corrupt.embeds[example : example + 1].clone().requires_grad_()
        mask = corrupt.attention_mask[example : example + 1]
        logits = lens.hf_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        (gradient,) = torch.autograd.grad(metric(logits), embeds)
        expected += ((clean.embeds - corrupt.embeds)[example] * gradient[0]).sum(-1) / 2
    found = torch.tensor([s for node, s in result.node_scores.items() if node.kind == "embed"])
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
    assert float(expected.abs().max()) > 0.1


def test_detect_head(lens, one):
    scores = detect_head(lens.model, one, "previous_token_head")
    _, cache = lens.run_with_cache(one)
    pattern = cache["pattern", 1][0, 2]
    expected = pattern.diagonal(-1).sum() / pattern.sum()
    torch.testing.assert_close(scores[1, 2], expected, atol=1e-5, rtol=1e-4)


@BRIDGE
def test_direct_path_patching_changes_later_heads(lens, pair):
    clean, corrupt = (one[0:1] for one in pair)
    caches = [lens.run_with_cache(one)[1] for one in (clean, corrupt)]
    options = {"src_layer": 0, "src_head": 1, "component": "q", "verbose": False}
    found = get_act_patch_direct_path(lens.model, corrupt, *caches, metric, **options)
    same = get_act_patch_direct_path(lens.model, corrupt, caches[1], caches[1], metric, **options)
    unpatched = metric(hf_logits(lens, corrupt))
    torch.testing.assert_close(same[1:], unpatched.expand_as(same[1:]), atol=1e-3, rtol=1e-4)
    assert float((found[1:] - unpatched).abs().max()) > 1e-2 and not bool(found[0].any())


@BRIDGE
def test_jacobian_lens(lens, one):
    """Its last layer reads the model's logits; fitted on the input it equals Jacobians by autograd."""
    fitted = JacobianLens.fit(
        lens.model, [one], corpus="one", source_layers=[4], skip_first_positions=2, show_progress=False, dim_batch=32
    )
    read = fitted.readout(lens.model, one, positions=[-1], return_full_logits=True)
    torch.testing.assert_close(read.model_logits[0], hf_logits(lens, one)[0, -1], atol=1e-3, rtol=1e-4)
    assert torch.equal(read.tokens, one.tokens[0])
    _, cache = lens.run_with_cache(one)
    resid, outputs = cache["resid_post", 4], []
    keep = [("blocks.5.hook_resid_post", lambda value, hook: outputs.append(value))]
    resid = resid.clone().requires_grad_()
    lens.model.run_with_hooks(one, fwd_hooks=[("blocks.4.hook_resid_post", lambda value, hook: resid), *keep])
    last, valid = outputs[0], slice(2, one.shape[1] - 1)
    for row in (0, 17):
        (gradient,) = torch.autograd.grad(last[0, valid, row].sum(), resid, retain_graph=True)
        expected = gradient[0, valid].mean(0)
        torch.testing.assert_close(fitted.jacobians[4][row], expected, atol=1e-4, rtol=1e-3)


@needs_4
@BRIDGE
def test_logit_lens_and_collect_activations(lens, pair):
    from transformer_lens.tools.analysis import collect_activations, logit_lens

    clean, _ = pair
    expected = hf_logits(lens, clean)[:, -1]
    result = logit_lens(lens.model, clean)
    assert largest_difference(result.readout.values[-1], expected) < 1e-3
    last = torch.full((2,), clean.shape[1] - 1)
    for name in ("blocks.1.hook_out", "blocks.1.hook_resid_post"):
        found = collect_activations(lens.model, name, clean, lens.model, positions=last, batch_size=1)
        with torch.no_grad():
            hidden = lens.hf_model.get_decoder()(
                inputs_embeds=clean.embeds, attention_mask=clean.attention_mask, output_hidden_states=True
            ).hidden_states[2]
        assert largest_difference(found, hidden[:, -1]) < 1e-3


@needs_4
@BRIDGE
def test_edge_attribution_of_grouped_heads_is_transformer_lenss_own_refusal(lens, pair):
    """It looks for `attn.hook_q_input`; here query heads share keys, which it does not know."""
    from transformer_lens.tools.analysis import EdgeAttributionConfig

    with pytest.raises((ValueError, NotImplementedError), match="(?i)head"):
        attribution_patch(lens.model, *pair, metric, EdgeAttributionConfig(granularity="edge"))


@pytest.mark.parametrize(
    "read",
    [
        lambda cache: cache.decompose_resid(),
        lambda cache: cache.accumulated_resid(),
        lambda cache: cache.stack_head_results(),
        lambda cache: cache.get_full_resid_decomposition(),
        lambda cache: cache.logit_attrs(torch.zeros(1, 1, 1, 96), tokens=5),
        lambda cache: cache.apply_ln_to_stack(torch.zeros(1, 1, 1, 96)),
        lambda cache: cache.stack_activation("resid_post"),
    ],
)
def test_a_cut_cache_is_refused(lens, one, read):
    """An index would be another position's."""
    _, cache = lens.run_with_cache(one, residual_positions=[-1, -3])
    with pytest.raises(LensplugError, match="reads a cache by position, and this one holds the residual stream of"):
        read(cache)


@BRIDGE
def test_the_cache_of_a_lens_is_read_by_a_bridges_names(lens, one):
    _, cache = lens.run_with_cache(one, residual_positions=[-1])
    assert torch.equal(cache["blocks.1.hook_out"], cache["resid_post", 1]) and "blocks.1.hook_out" not in list(cache)
    with pytest.raises(KeyError):
        cache["blocks.1.hook_nothing"]


def test_words_run_as_before(lens):
    logits = lens.model("What is the color?")
    tokens = lens.model.to_tokens("What is the color?")
    assert largest_difference(logits, reference_logits(lens.hf_model, {"input_ids": tokens})) < 1e-3
