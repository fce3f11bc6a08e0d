"""What each part of a layer writes is found by numbers; a part that is lost in rounding is not taken for another."""

from __future__ import annotations

import pytest
import torch
from support.models import text_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from lensplug.errors import LensplugError
from lensplug.patches.bridge.layer_parts import decoder_parts


def unlike_a_trained_one(size):
    """A model with transformers' first weights: its stream is a fiftieth of what its norms return, and less."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=320,
    )  # fmt: skip
    return with_stream(Qwen2ForCausalLM(config).eval(), size)


def with_stream(model, size):
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(size)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_parts_of_layers_with_a_tiny_stream(dtype, size):
    """In bfloat16 the input norm's output equals itself plus stream plus attention: it is not what writes."""
    for layer in decoder_parts(unlike_a_trained_one(size).to(dtype).model).layers:
        assert (layer.attention, layer.mlp, layer.reads_mid) == ("self_attn", "mlp", ("post_attention_layernorm",))
        assert layer.norms == {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}


def test_where_rounding_hides_the_stream_it_is_refused():
    model = with_stream(text_model("qwen2").to(torch.bfloat16), 1e-4)
    with pytest.raises(LensplugError, match="layer 0 .* does not add what its parts return"):
        decoder_parts(model.model)
