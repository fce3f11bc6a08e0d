"""The cache of the lens explains Hugging Face's own logits, hooks act and leave, and inputs go where tokens go."""

from __future__ import annotations

import inspect

import pytest
import torch
from support.models import QUESTION, largest_difference, llava, reference_logits, scene, snapshot, wrapped_logits
from torch.nn import functional as F

import lensplug
from lensplug import analysis
from lensplug.positions.tokens import single_token


@pytest.fixture(scope="module")
def run(lens, inputs):
    """Logits and the whole cache of one prompt with one picture."""
    return lens.run_with_cache(inputs)


@pytest.fixture(scope="module")
def reference(lens, inputs):
    return reference_logits(lens.hf_model, inputs.model_inputs)


@pytest.fixture(scope="module")
def residuals(lens, inputs):
    """The residual stream after each block of Hugging Face's decoder, before the final norm."""
    kept = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, output: kept.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in lens.core.decoder.layers
    ]
    reference_logits(lens.hf_model, inputs.model_inputs)
    for hook in hooks:
        hook.remove()
    return kept


def test_logits_and_every_residual_are_those_of_hugging_face(lens, run, reference, residuals):
    logits, cache = run
    assert largest_difference(logits, reference) < 1e-4 and not logits.requires_grad
    for layer, expected in enumerate(residuals):
        assert largest_difference(cache["resid_post", layer], expected) < 1e-4


def test_hook_embed_holds_the_merged_embeddings(lens, inputs, run):
    cache = run[1]
    assert torch.equal(cache["hook_embed"], inputs.embeds)
    image = inputs.modality.mask("image")
    placeholder = lens.core.decoder.embed_tokens(inputs.tokens).detach()
    assert largest_difference(cache["hook_embed"][image], placeholder[image]) > 0.1, "not the placeholder's embedding"
    assert torch.equal(cache["hook_embed"][~image], placeholder[~image])


@pytest.mark.parametrize("layer", [-1, None])
def test_decompose_resid_sums_to_the_last_residual(inputs, run, residuals, layer):
    components, labels = run[1].decompose_resid(layer=layer, return_labels=True)
    assert labels[0] == "embed" and len(labels) == len(components) == 1 + 2 * len(residuals)
    image = inputs.modality.mask("image")
    assert largest_difference(components.sum(0)[image], residuals[-1][image]) < 1e-4
    assert largest_difference(components.sum(0), residuals[-1]) < 1e-4


def test_full_decomposition_sums_to_the_last_residual(inputs, run, residuals):
    position = int(inputs.modality.image_positions()[40])
    parts, labels = run[1].get_full_resid_decomposition(expand_neurons=False, return_labels=True, pos_slice=position)
    assert "L0H0" in labels and "embed" in labels and "bias" in labels
    assert largest_difference(parts.sum(0), residuals[-1][:, position]) < 1e-4


def test_heads_and_the_rest_sum_to_the_last_residual(lens, run, residuals):
    cache, cfg = run[1], lens.model.cfg
    heads, labels = cache.stack_head_results(layer=-1, return_labels=True)
    assert labels[-1] == f"L{cfg.n_layers - 1}H{cfg.n_heads - 1}"
    rest = cache["hook_embed"] + sum(cache["mlp_out", layer] for layer in range(cfg.n_layers))
    assert largest_difference(heads.sum(0) + rest, residuals[-1]) < 1e-4
    with_rest = cache.stack_head_results(layer=-1, incl_remainder=True)
    assert largest_difference(with_rest.sum(0), residuals[-1]) < 1e-4


@pytest.mark.parametrize("folded", [True, False])
def test_logit_attributions_sum_to_the_logit(lens, folded_lens, inputs, reference, folded):
    """With folded weights logits are centred at each position; b_U is zero, as the head has no bias."""
    chosen = folded_lens if folded else lens
    _, cache = chosen.run_with_cache(inputs)
    expected = reference - reference.mean(-1, keepdim=True) if folded else reference
    components = cache.decompose_resid(layer=-1)
    for token in reference[0, -1].topk(3).indices.tolist():
        attributions = cache.logit_attrs(components, tokens=token).sum(0) + chosen.model.b_U[token]
        torch.testing.assert_close(attributions[0, -1], expected[0, -1, token], rtol=1e-3, atol=0)
        assert largest_difference(attributions, expected[..., token]) < 1e-3 * float(expected.abs().max())


@pytest.mark.parametrize("per_token", [True, False])
def test_loss_is_the_cross_entropy_of_hugging_face(lens, batch, per_token):
    logits = reference_logits(lens.hf_model, batch.model_inputs)
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch.tokens[:, 1:], reduction="none")
    counted = (batch.attention_mask[:, :-1] * batch.attention_mask[:, 1:]).bool()
    with torch.no_grad():
        loss = lens.model(batch, return_type="loss", loss_per_token=per_token)
        by_hand = lens.model(
            batch.embeds, return_type="loss", loss_per_token=per_token, tokens=batch.tokens,
            attention_mask=batch.attention_mask,
        )  # fmt: skip
    assert torch.equal(loss, by_hand)
    if per_token:
        assert largest_difference(loss, losses, counted) < 1e-4
    else:
        assert abs(float(loss) - float(losses[counted].mean())) < 1e-4
        assert torch.equal(lens.run_with_cache(batch, return_type="loss")[0], loss)


def test_gradients_of_float_input_are_those_of_hugging_face(lens, inputs):
    token, gradients = 7, []
    for model in (lens.model, lambda x: lens.core.head(lens.core.decoder(inputs_embeds=x).last_hidden_state)):
        embeds = inputs.embeds.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(embeds)[0, -1, token], embeds)
        gradients.append(gradient)
    assert float(gradients[1].abs().max()) > 1e-3
    assert largest_difference(*gradients) < 1e-4 * max(1, float(gradients[1].abs().max()))


def test_hooks_act_during_the_call_only(lens, inputs, reference, unchanged):
    """An image replaced at hook_embed is another image: what Hugging Face computes from those embeddings."""
    image = inputs.modality.mask("image")

    def blank(embeds, hook):
        embeds = embeds.clone()
        embeds[image] = 0
        return embeds

    with torch.no_grad():
        hooked = lens.run_with_hooks(inputs, fwd_hooks=[("hook_embed", blank)])
        blanked = {"inputs_embeds": blank(inputs.embeds, None), "attention_mask": inputs.attention_mask}
    expected = reference_logits(lens.hf_model, blanked)
    assert largest_difference(hooked, expected) < 1e-4 and largest_difference(hooked, reference) > 0.1
    assert largest_difference(wrapped_logits(lens, inputs), reference) < 1e-4


def test_keeps_what_is_asked_for(lens, inputs, unchanged):
    def names(names_filter):
        return set(lens.run_with_cache(inputs, names_filter=names_filter)[1].keys())

    assert names("blocks.1.attn.hook_pattern") == {"blocks.1.attn.hook_pattern"}
    assert names(("hook_embed", "blocks.0.hook_resid_post")) == {"hook_embed", "blocks.0.hook_resid_post"}
    assert names(lambda name: name.endswith("hook_z")) == {f"blocks.{layer}.attn.hook_z" for layer in range(6)}


def test_caches_know_the_texts_of_their_positions(lens, batch, unchanged):
    """Of every way to run, so that results are named without being told."""
    expected = tuple(map(tuple, batch.str_tokens))
    gradients = lens.run_with_gradients(batch, target=7)[1]
    for options in ({}, {"query_positions": [-1]}, {"keep": "head_mean"}):
        cache = lens.run_with_cache(batch, **options)[1]
        assert cache.str_tokens == gradients.str_tokens == expected
    assert analysis.received_attention(cache).str_tokens == expected
    assert analysis.received_attention(cache, str_tokens=[["x"] * len(expected[0])] * 3).str_tokens[0][0] == "x"
    assert "color?" in analysis.attention_matrix(gradients, layer=0, groups="words").texts[0], "pieces are joined"


@pytest.mark.parametrize("where", ["filter", "list", "hooks"])
def test_an_unknown_hook_is_refused_with_the_one_that_is_near(lens, inputs, where, unchanged):
    near = "'blocks.0.attn.hook_patern' is no hook.*Did you mean 'blocks.0.attn.hook_pattern'"
    with pytest.raises(lensplug.LensplugError, match=near):
        if where == "hooks":
            lens.run_with_hooks(inputs, fwd_hooks=[("blocks.0.attn.hook_patern", lambda value, hook: value)])
        else:
            name = "blocks.0.attn.hook_patern"
            lens.run_with_cache(inputs, names_filter=name if where == "filter" else ["hook_embed", name])
    with pytest.raises(lensplug.LensplugError, match="'zzz' is no hook of this model. See lens.model.hook_dict"):
        lens.run_with_cache(inputs, names_filter="zzz")


class Boom(Exception):
    pass


@pytest.mark.parametrize("call", ["run_with_hooks", "run_with_cache", "generate"])
def test_an_exception_in_a_users_hook_passes_through_and_leaves_nothing(lens, inputs, reference, call):
    before, error = snapshot(lens.model), Boom("mine")

    def raise_it(value, hook):
        raise error

    hooks = [("blocks.2.hook_resid_post", raise_it)]
    with pytest.raises(Boom) as caught:
        if call == "run_with_hooks":
            lens.run_with_hooks(inputs, fwd_hooks=hooks)
        else:
            with lens.model.hooks(fwd_hooks=hooks):
                getattr(lens, call)(inputs)
    assert caught.value is error
    assert snapshot(lens.model) == before
    assert largest_difference(wrapped_logits(lens, inputs), reference) < 1e-4


def test_too_many_positions_are_refused(picture):
    model, processor = llava()
    model.config.text_config.max_position_embeddings = 15
    lens = lensplug.wrap(model, processor)
    long = lens.prepare("What <image> is?", images=[picture], chat_template=False)
    with pytest.raises(lensplug.LensplugError, match=r"\d+ positions, but the model has a context of 15"):
        lens.run_with_cache(long)


@pytest.mark.parametrize("call", ["run_with_cache", "estimate", "run_with_gradients", "generate", "check"])
@pytest.mark.parametrize("given", ["tokens", "embeds", "model_inputs"])
def test_what_are_no_inputs_of_the_lens_are_refused(lens, inputs, call, given):
    unchecked = inspect.unwrap(getattr(type(lens), call))  # without the types that tests check before
    options = {"target": 3} if call == "run_with_gradients" else {}
    with pytest.raises(lensplug.LensplugError, match=r"inputs are a (Tensor|dict), expected what lens.prepare"):
        unchecked(lens, getattr(inputs, given), **options)


def test_strings_and_token_ids_go_the_old_way(lens, inputs):
    ids = lens.tokenizer("What is the color?", return_tensors="pt")["input_ids"]
    reference = reference_logits(lens.hf_model, {"input_ids": ids})
    for words in (ids, "What is the color?", ["What is the color?"]):
        assert largest_difference(wrapped_logits(lens, words), reference) < 1e-4


@pytest.mark.parametrize(
    ("word", "message"), [("Zebra!", r"'Zebra!' is \d tokens \('Z', .*'!'\), expected one"), ("", "'' is 0 tokens")]
)
def test_a_word_that_is_not_one_token_names_its_pieces(lens, word, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        single_token(word, lens.tokenizer)
    with pytest.raises(lensplug.LensplugError, match="the word 'Red', but there is no tokenizer"):
        single_token("Red", None)
    assert lens.tokenizer.decode([single_token("Red", lens.tokenizer)]) == "Red"


def test_says_what_it_is(lens):
    assert "LlavaOnevisionForConditionalGeneration" in repr(lens) and "6 layers x 6 heads, d_model 96" in repr(lens)
    assert lens.prepare(QUESTION, images=[scene(48, 48)]).modality.names == ("text", "image")


def test_a_call_with_a_wrong_argument_is_named_as_it_was_made(lens, inputs):
    with pytest.raises(lensplug.LensplugError, match=r"^MultimodalLens\.generate: .*'max_tokens'"):
        lens.generate(inputs, max_tokens=3)
