"""A TransformerLens whose inside has changed is refused with a sentence, before anything is computed."""

from __future__ import annotations

import sys

import pytest
from support.models import llava_onevision

import lensplug
from lensplug import LensplugError


@pytest.mark.parametrize(
    "name", ["_update_kv_cache", "_apply_reconstruct_attention_mask", "_scrub_compatibility_pattern_nans"]
)
def test_a_method_of_a_bridge_is_gone(monkeypatch, name):
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    owner = next(kind for kind in AttentionBridge.__mro__ if name in vars(kind))
    monkeypatch.delattr(owner, name)
    with pytest.raises(LensplugError, match=f"has internals.*has no {name}.*pip install"):
        lensplug.wrap(*llava_onevision(), engine="bridge", check=False)


def test_a_module_of_a_bridge_is_gone(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge.sources._bridge_builder", None)
    with pytest.raises(LensplugError, match="has internals.*_bridge_builder.*pip install"):
        lensplug.wrap(*llava_onevision(), engine="bridge", check=False)


def test_a_method_of_a_bridge_is_gone_that_only_rows_need(monkeypatch):
    from transformer_lens.model_bridge.generalized_components import PositionEmbeddingsAttentionBridge as Bridge

    lens = lensplug.wrap(*llava_onevision(), engine="bridge", check=False)
    inputs = lens.encode({"input_ids": lens.core.head.weight.new_tensor([[1, 2, 3]]).long()})
    owner = next(kind for kind in Bridge.__mro__ if "_apply_position_embedding_hooks" in vars(kind))
    monkeypatch.delattr(owner, "_apply_position_embedding_hooks")
    with pytest.raises(LensplugError, match="has internals.*_apply_position_embedding_hooks"):
        lens.run_with_cache(inputs, query_positions=[-1])
