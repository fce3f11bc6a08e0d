"""Cores whose weights accelerate keeps elsewhere: the same numbers as the model in memory, and nothing left loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models import largest_difference, llava_onevision, scene, text_model, text_tokens

import lensplug
from lensplug import LensplugError, analysis
from lensplug.lens import MultimodalLens

accelerate: Any = pytest.importorskip("accelerate")
TOKENS = text_tokens(20)


def in_processor_memory(model, folder):
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def split(model, folder):
    """The layers in memory, embeddings and head on disk."""
    device_map = {"model.embed_tokens": "disk", "model.layers.0": "disk", "lm_head": "disk"}
    device_map |= {"model.layers.1": "cpu", "model.layers.2": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    return accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=folder, force_hooks=True)


WAYS = {"memory": in_processor_memory, "disk": on_disk, "split": split}


def on_meta(model):
    return {name for name, weight in model.named_parameters() if weight.is_meta}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "qwen2-tied"])
def test_runs_gradients_and_weights_are_those_of_the_model_in_memory(way, name, tmp_path):
    plain = lensplug.wrap(text_model(name), engine="bridge")
    model = WAYS[way](text_model(name), tmp_path)
    away = on_meta(model)
    assert away, "nothing was offloaded"
    lens = lensplug.wrap(model)
    assert lens.engine == "bridge" and lens.core.device.type == lens.model.cfg.device == "cpu"
    inputs = lens.encode({"input_ids": TOKENS})
    with torch.no_grad():
        assert largest_difference(lens.model(inputs), plain.model(inputs)) < 1e-6
    logits, cache = lens.run_with_cache(inputs, query_positions=[-1])
    expected, kept = plain.run_with_cache(inputs, query_positions=[-1])
    assert cache.keys() == kept.keys() and {value.device.type for value in cache.values()} == {"cpu"}
    for hook in kept:
        torch.testing.assert_close(cache[hook], kept[hook], atol=1e-5, rtol=1e-5)
    found, wanted = (each.run_with_cache(inputs)[1] for each in (lens, plain))
    by_head = [analysis.direct_attribution(each, target=5, by="head").values for each in (found, wanted)]
    assert largest_difference(*by_head) < 1e-5
    gradients = [each.run_with_gradients(inputs, target=5)[2] for each in (lens, plain)]
    torch.testing.assert_close(gradients[0]["pattern", 0], gradients[1]["pattern", 0], atol=1e-4, rtol=1e-4)
    assert torch.equal(lens.generate(inputs, max_new_tokens=3).tokens, plain.generate(inputs, max_new_tokens=3).tokens)
    assert lens.check(inputs).agrees
    assert on_meta(model) == away, "weights stayed in memory"


def test_a_multimodal_model_on_disk(tmp_path):
    model, processor = llava_onevision()
    plain = lensplug.wrap(model, processor, engine="bridge")
    images = [scene(48, 48)]
    inputs = plain.prepare("What is the color?", images=images)
    with torch.no_grad():
        expected = plain.model(inputs)
    lens = lensplug.wrap(accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu")), processor)
    prepared = lens.prepare("What is the color?", images=images)
    assert torch.equal(prepared.embeds, inputs.embeds)
    with torch.no_grad():
        assert largest_difference(lens.model(prepared), expected) < 1e-5
    assert lens.check(prepared).agrees


def test_what_cannot_be_says_what_to_type(tmp_path):
    model = on_disk(text_model("llama"), tmp_path)
    with pytest.raises(LensplugError, match=r"Linear, split or offloaded.*use engine='bridge'|no HookedTransformer"):
        lensplug.wrap(model, engine="hooked_transformer")
    accelerate.hooks.remove_hook_from_module(model.model.layers[0].mlp.up_proj)
    with torch.device("meta"):
        model.model.layers[0].mlp.up_proj = torch.nn.Linear(32, 48, bias=False)
    with pytest.raises(LensplugError, match="on the meta device: its weights are not loaded"):
        lensplug.wrap(model.eval())


def test_two_checkpoints_on_disk_have_two_fingerprints(tmp_path):
    caches = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        lens: MultimodalLens = lensplug.wrap(on_disk(text_model("llama", seed), folder))
        caches.append(lens.run_with_cache(lens.encode({"input_ids": TOKENS}), names_filter=["hook_embed"])[1])
    assert caches[0].weights != caches[1].weights
