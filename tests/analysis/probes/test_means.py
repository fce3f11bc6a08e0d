"""Means and differences of means against plain means over a cache, over batches and files."""

from __future__ import annotations

import pytest
import torch
from support.models import QUESTION, scene

from lensplug import LensplugError, analysis
from lensplug.interventions import Ablate


@pytest.fixture(scope="module")
def batches(lens):
    prompts = [[QUESTION, "What is the shape? " + QUESTION], [QUESTION]]
    return [lens.prepare(texts, images=[[scene(48, 48, seed)] for seed in range(len(texts))]) for texts in prompts]


def collected(lens, batches, **options):
    caches = [lens.run_with_cache(batch)[1] for batch in batches]
    return caches, [analysis.activations(cache, batch, **options) for cache, batch in zip(caches, batches, strict=True)]


def test_a_mean_is_over_all_positions_of_all_examples(lens, batches, tmp_path):
    caches, results = collected(lens, batches, hook="z", pool=("text", "media"))
    files = [tmp_path / f"{index}.safetensors" for index in range(len(results))]
    for file, result in zip(files, results, strict=True):
        result.save(file)
    means = analysis.mean_activations(files)
    assert list(means) == [f"blocks.{layer}.attn.hook_z" for layer in range(lens.model.cfg.n_layers)]
    for name, mean in means.items():
        flat = torch.cat(
            [cache[name][batch.attention_mask.bool()] for cache, batch in zip(caches, batches, strict=True)]
        )
        torch.testing.assert_close(mean, flat.mean(dim=0), atol=1e-5, rtol=1e-4)
    with lens.intervene(Ablate(heads=[(1, 0)], method="mean", values=means)):
        _, cache = lens.run_with_cache(batches[1])
    expected = means["blocks.1.attn.hook_z"][0].expand(batches[1].shape[1], -1)
    torch.testing.assert_close(cache["z", 1][0, :, 0], expected)
    assert not torch.allclose(caches[1]["z", 1][0, :, 0], expected, atol=1e-2)


def test_a_difference_counts_each_example_once(lens, batches):
    caches, results = collected(lens, batches)
    found = analysis.difference_of_means(results[0], results[1])
    for layer, direction in enumerate(found):
        of_each = [cache["resid_post", layer][:, -1].mean(dim=0) for cache in caches]
        torch.testing.assert_close(direction, of_each[0] - of_each[1], atol=1e-5, rtol=1e-4)


def test_groups_that_were_collected_otherwise_are_refused(lens, batches):
    (_, results), (_, others) = collected(lens, batches), collected(lens, batches, hook="mlp_out")
    with pytest.raises(LensplugError, match="with the same options"):
        analysis.difference_of_means(results[0], others[1])
    with pytest.raises(LensplugError, match="there are no activations"):
        analysis.mean_activations([])
