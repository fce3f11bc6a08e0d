"""ConfigFix: a HookedTransformer becomes another model's core for a while; weights are shared; before = after."""

import pytest
import torch
from support.built import core_parts
from support.models import (
    TEXT_CORES,
    largest_difference,
    reference_logits,
    snapshot,
    text_config,
    text_model,
    text_tokens,
)
from transformer_lens import HookedTransformer, HookedTransformerConfig

from lensplug import LensplugError
from lensplug.patches import ConfigFix, EmbeddingInput
from lensplug.patches.core_parts import CoreParts
from lensplug.patches.hooked_transformer.core import (
    build_hooked_transformer,
    core_state_dict,
    hooked_transformer_config,
)
from lensplug.tiny.image_model import build_tokenizer


def parts(model):
    return model.get_decoder(), model.get_output_embeddings(), model.config


@pytest.fixture
def own():
    """A HookedTransformer that the user already has, of other sizes, with a hook on it."""
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=24, n_ctx=64, n_heads=3, d_head=8, d_vocab=40, act_fn="silu", gated_mlp=True, d_mlp=16,
        normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=8, device="cpu", seed=1,
    )  # fmt: skip
    model = HookedTransformer(cfg)
    model.add_perma_hook("blocks.0.hook_resid_post", lambda value, hook: value * 2)
    return model


@pytest.mark.parametrize("name", ["llama-wide-heads", "qwen2", "qwen2-no-gqa", "mistral-window", "qwen3"])
def test_it_is_the_core_inside_and_itself_again_outside(own, name):
    model, tokens = text_model(name), torch.arange(20)[None]
    before, logits = snapshot(own), own(tokens)
    with ConfigFix(own, *parts(model)):
        inside = own(tokens)
        assert own.cfg.n_layers == model.config.num_hidden_layers and len(own.hook_dict) > 0
        assert largest_difference(inside, reference_logits(model, {"input_ids": tokens})) < 1e-4
        _, cache = own.run_with_cache(tokens)
        assert f"blocks.{own.cfg.n_layers - 1}.hook_resid_post" in cache
    assert snapshot(own) == before
    torch.testing.assert_close(own(tokens), logits, atol=0, rtol=0)


def test_an_exception_brings_the_old_model_back(own):
    before = snapshot(own)
    with pytest.raises(ZeroDivisionError), ConfigFix(own, *parts(text_model("qwen2"))):
        raise ZeroDivisionError
    assert snapshot(own) == before


def test_a_model_that_cannot_be_the_core_leaves_everything_as_it_was(own):
    before, model = snapshot(own), text_model("llama")
    model.config.mlp_bias = True
    with pytest.raises(LensplugError, match="mlp_bias"):
        ConfigFix(own, *parts(model)).apply()
    assert snapshot(own) == before


def test_learned_positions_are_no_ground_to_stand_on():
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=8, n_heads=1, d_head=8, d_vocab=9, act_fn="gelu", device="cpu"
    )
    with pytest.raises(LensplugError, match="rotary"):
        ConfigFix(HookedTransformer(cfg), *parts(text_model("llama"))).apply()


@pytest.mark.parametrize("name", TEXT_CORES)
def test_the_weights_are_shared_unless_they_are_processed(name):
    model = text_model(name)
    hf = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shared = build_hooked_transformer(core_parts(model))
    own = [p for p in shared.parameters() if p.untyped_storage().data_ptr() not in hf]
    assert not any(bool(p.any()) for p in own), "only biases that Hugging Face lacks are new"
    copied = build_hooked_transformer(core_parts(model), process_weights=True)
    assert not hf & {p.untyped_storage().data_ptr() for p in copied.parameters()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    tokens = text_tokens()
    log_p = reference_logits(model, {"input_ids": tokens}).log_softmax(-1)
    assert largest_difference(copied(tokens).log_softmax(-1), log_p) < 1e-4


def test_a_change_of_a_shared_weight_is_seen_by_both():
    model, tokens = text_model("qwen2"), text_tokens()
    shared = build_hooked_transformer(core_parts(model))
    with torch.no_grad():
        shared.blocks[1].attn.W_O.mul_(0.5)
    assert largest_difference(shared(tokens), reference_logits(model, {"input_ids": tokens})) < 1e-4


def test_layers_share_one_table_of_rotations_also_when_it_grows():
    model = text_model("qwen2", max_position_embeddings=4096)
    shared = build_hooked_transformer(core_parts(model))
    tokens = torch.arange(2100)[None] % 300  # TransformerLens begins with 2,048 positions
    assert largest_difference(shared(tokens), reference_logits(model, {"input_ids": tokens})) < 1e-4
    tables = [(block.attn.rotary_sin.data_ptr(), len(block.attn.rotary_sin)) for block in shared.blocks]
    assert len(tables) > 1 and len(set(tables)) == 1 and tables[0][1] >= 2100


def test_the_configuration_is_read_not_looked_up():
    config = text_config("Qwen3", head_dim=16, vocab_size=77)
    cfg = hooked_transformer_config(config, d_vocab=80)
    assert (cfg.d_head, cfg.n_key_value_heads, cfg.d_vocab, cfg.use_qk_norm) == (16, 2, 80, True)
    assert cfg.n_ctx == 512 and cfg.default_prepend_bos is False
    with pytest.raises(LensplugError, match="'gpt2' decoder"):
        from transformers import GPT2Config

        hooked_transformer_config(GPT2Config(), d_vocab=10)


def test_a_decoder_of_another_class_is_refused():
    model = text_model("llama")
    with pytest.raises(LensplugError, match="LlamaModel with model_type 'qwen2'"):
        build_hooked_transformer(CoreParts(model.model, model.lm_head, text_config("Qwen2")))


@pytest.mark.parametrize("process_weights", [False, True])
def test_a_model_with_another_norm_and_activation_takes_the_core_too(process_weights):
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=12, n_ctx=10, n_heads=2, d_head=6, d_vocab=50, d_mlp=20, act_fn="relu",
        normalization_type="LN", positional_embedding_type="rotary", rotary_dim=6, device="cpu", seed=0,
    )  # fmt: skip
    held, model, tokens = HookedTransformer(cfg), text_model("llama"), text_tokens(16, batch=2)
    before, logits = snapshot(held), held(torch.arange(9)[None])
    reference = reference_logits(model, {"input_ids": tokens}).log_softmax(-1)
    with ConfigFix(held, *parts(model), process_weights=process_weights):
        assert largest_difference(held(tokens).log_softmax(-1), reference) < 1e-4
    assert snapshot(held) == before and torch.equal(held(torch.arange(9)[None]), logits)


def test_the_tokenizer_changes_with_the_core(own):
    tokenizer = build_tokenizer()
    with ConfigFix(own, *parts(text_model("llama", vocab_size=512)), tokenizer=tokenizer):
        assert own.tokenizer is tokenizer and own.to_str_tokens("Red circle", prepend_bos=False)[0] == "Red"
    assert own.tokenizer is None


def test_hooks_of_both_models_stay_apart(own):
    fired = []

    def watch(value, hook):
        fired.append(value.shape[-1])

    own.add_hook("blocks.1.hook_resid_post", watch)
    before = snapshot(own)
    with ConfigFix(own, *parts(text_model("llama"))):
        own(text_tokens())
        assert fired == [], "hooks on the old modules rest"
        own.add_hook("blocks.2.hook_resid_post", watch)
        own(text_tokens())
    assert fired == [32] and snapshot(own) == before
    own(torch.arange(9)[None])
    assert fired == [32, 24], "and are back, those on the core gone"


def test_applying_twice_builds_once_and_removing_twice_is_harmless(own):
    before, patch = snapshot(own), ConfigFix(own, *parts(text_model("llama")))
    for _ in range(2):
        blocks = patch.apply().target.blocks
        assert patch.apply().target.blocks is blocks
        patch.remove()
        patch.remove()
        assert snapshot(own) == before


def test_nested_cores_and_embedding_input(own):
    outer, inner, tokens = text_model("llama"), text_model("qwen3"), text_tokens(16)
    references = [reference_logits(model, {"input_ids": tokens}) for model in (outer, inner)]
    before = snapshot(own)
    with EmbeddingInput(own), ConfigFix(own, *parts(outer)) as first:
        assert largest_difference(own(outer.model.embed_tokens(tokens)), references[0]) < 1e-4
        with ConfigFix(own, *parts(inner)):
            assert largest_difference(own(inner.model.embed_tokens(tokens)), references[1]) < 1e-4
            with pytest.raises(LensplugError, match="ConfigFix cannot be removed.*later patch first"):
                first.remove()
            assert largest_difference(own(tokens), references[1]) < 1e-4, "nothing was half removed"
        assert largest_difference(own(tokens), references[0]) < 1e-4
    assert snapshot(own) == before


@pytest.mark.parametrize("name", TEXT_CORES)
def test_the_state_dict_is_made_of_views(name):
    model = text_model(name)
    cfg = hooked_transformer_config(model.config, d_vocab=320)
    shared = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    for key, weight in core_state_dict(core_parts(model), cfg).items():
        is_bias = "b_" in key.rsplit(".", 1)[-1]
        assert weight.untyped_storage().data_ptr() in shared or (is_bias and not weight.any())


def test_a_head_with_a_bias_and_added_tokens():
    """The embedding may have more rows than the configuration says, the head another number again."""
    model, tokens = text_model("llama"), text_tokens()
    model.resize_token_embeddings(333)
    model.lm_head = torch.nn.Linear(32, 340)
    wrapped = build_hooked_transformer(core_parts(model))
    assert (wrapped.cfg.d_vocab, wrapped.cfg.d_vocab_out) == (333, 340)
    assert largest_difference(wrapped(tokens), reference_logits(model, {"input_ids": tokens})) < 1e-4
