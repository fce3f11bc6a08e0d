"""LLaVA over every language core that image models are built on: what holds of each, on text and image positions."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from support.beside import IDS, TEXT, VISION, qwen_prompts
from support.cores import CORES, llava_over, prompts, wrapped
from support.exact import compared
from support.families.media import with_medium
from support.models import randomise

import lensplug
from lensplug import engines
from lensplug.patches.bridge.routing import HOOKS


@pytest.mark.parametrize("core", CORES)
def test_it_is_hugging_faces(core):
    lens = wrapped(core)
    assert lens.engine == "bridge" and engines.is_tested(lens.core)
    inputs = lens.encode(prompts())
    assert not bool(inputs.attention_mask.all()) and "image" in inputs.modality.names
    assert compared(lens, inputs).is_rounding(), compared(lens, inputs)
    proof = lensplug.wrap(lens.hf_model, prove=True).proof
    assert proof.first_failure is None and "proved" in proof.short()


@pytest.mark.parametrize("core", CORES)
def test_bfloat16(core):
    lens = lensplug.wrap(llava_over(core).to(torch.bfloat16))
    given = prompts()
    report = lens.check(lens.encode({**given, "pixel_values": given["pixel_values"].to(torch.bfloat16)}))
    assert report.dtype == "bfloat16" and report.argmax_agreement > 0.9
    # Rounding in half precision sends a token that is between two experts to the other one.
    assert report.agrees or core == "mixtral"


@pytest.mark.parametrize("core", ["qwen3_moe", "mixtral"])
def test_routing_has_hooks(core):
    lens = wrapped(core)
    inputs = lens.encode(prompts())
    _, cache = lens.run_with_cache(inputs)
    for name in HOOKS[1:]:
        assert cache[f"blocks.1.mlp.{name}"].shape == (*inputs.tokens.shape, 2)


def test_query_rows_where_nothing_is_rotated():
    """Some layers of SmolLM3 have no rotation: there the distance of a key does not matter."""
    lens = wrapped("smollm3")
    inputs = lens.encode(prompts())
    _, rows = lens.run_with_cache(inputs, query_positions=[-1], keep="head_mean")
    _, whole = lens.run_with_cache(inputs)
    for layer in range(3):
        expected = whole["pattern", layer]
        torch.testing.assert_close(rows["pattern", layer][:, :, 0], expected[:, :, -1], atol=1e-6, rtol=0)
        mean, real = rows[f"blocks.{layer}.attn.head_mean"], inputs.attention_mask.bool()
        torch.testing.assert_close(mean[real], expected.mean(1)[real], atol=1e-6, rtol=0)


def glm4v():
    """Three-part positions, and norms behind attention and MLP."""
    vision = {**VISION, "hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "image_size": 32}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
    config = hf.Glm4vConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_start_token_id=302,
        image_end_token_id=303, **{name: IDS[name] for name in ("image_token_id", "video_token_id")},
    )  # fmt: skip
    return randomise(hf.Glm4vForConditionalGeneration(config))


def test_glm_4v():
    model = glm4v()
    lens = lensplug.wrap(model)
    inputs = lens.encode(with_medium(model, "image"))
    assert inputs.decoder_inputs["position_ids"].shape[0] == 3
    assert compared(lens, inputs).is_rounding(), compared(lens, inputs)
    batch = lens.encode(qwen_prompts(20, 13))
    assert compared(lens, batch).is_rounding(), compared(lens, batch)
