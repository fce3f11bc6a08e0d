"""Modality null: mean, deviation and p against every order of the labels, a plain loop, and head specialization."""

from __future__ import annotations

from importlib import import_module
from itertools import permutations

import numpy as np
import pytest
import torch
from support.caches import cache_of_patterns, causal_patterns, padded

from lensplug import LensplugError, views
from lensplug.analysis import ModalityNull, head_specialization, modality_null
from lensplug.positions.modality_map import ModalityMap

IMAGE, AUDIO = 48, 49
"""Ids of placeholders."""
IDS = torch.tensor([[1, 2, IMAGE, IMAGE, 3, AUDIO, IMAGE, 4]])
LABELS = ["text", "image", "image", "text", "audio", "image", "text"]
"""Of all but the first position, which is the sink."""


def map_of(ids: torch.Tensor, mask: torch.Tensor | None = None) -> ModalityMap:
    mask = torch.ones_like(ids) if mask is None else mask
    return ModalityMap.build(ids, mask, placeholder_ids={"image": IMAGE, "audio": AUDIO})


def test_mean_deviation_and_p_are_those_of_every_order_of_the_labels():
    patterns = causal_patterns(2, 1, 2, 8)
    result = modality_null(cache_of_patterns(patterns), map_of(IDS), shuffles=4000)
    assert result.modalities == ("text", "image", "audio")
    orders = np.array(list(permutations(LABELS)))
    for layer in range(2):
        for head in range(2):
            row = patterns[layer][0, head, -1, 1:].double().numpy()
            for index, name in enumerate(result.modalities):
                masses = (orders == name) @ row
                observed = row[np.array(LABELS) == name].sum()
                p = (abs(masses - masses.mean()) >= abs(observed - masses.mean()) - 1e-9).mean()
                at = (0, layer, head, index)
                np.testing.assert_allclose(result.mass[at], observed, rtol=1e-6)
                np.testing.assert_allclose(result.null_mean[at], masses.mean(), rtol=1e-6)
                np.testing.assert_allclose(result.null_sd[at], masses.std(), rtol=1e-6)
                np.testing.assert_allclose(result.z[at], (observed - masses.mean()) / masses.std(), rtol=1e-5)
                np.testing.assert_allclose(result.p_value[at], p, atol=4 * (p * (1 - p) / 4000) ** 0.5 + 1 / 4000)


def test_p_counts_shuffles_as_a_plain_loop():
    patterns = causal_patterns(1, 1, 3, 8, seed=1)
    result = modality_null(cache_of_patterns(patterns), map_of(IDS), shuffles=50, seed=7)
    generator = torch.Generator().manual_seed(7)
    orders = [torch.randperm(7, generator=generator).tolist() for _ in range(50)]
    for head in range(3):
        row = patterns[0][0, head, -1, 1:].double().tolist()
        for index, name in enumerate(result.modalities):
            mean = sum(row) / 7 * LABELS.count(name)
            observed = sum(weight for weight, label in zip(row, LABELS, strict=True) if label == name)
            as_far = 1
            for order in orders:
                mass = sum(weight for weight, place in zip(row, order, strict=True) if LABELS[place] == name)
                as_far += abs(mass - mean) >= abs(observed - mean) - 1e-9
            assert float(result.p_value[0, 0, head, index]) == pytest.approx(as_far / 51, abs=1e-12)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("sinks", ["first", "special", None, "mask"])
def test_mass_is_that_of_head_specialization_and_no_example_depends_on_those_beside_it(left, sinks):
    rows = [IDS[0], torch.tensor([1, IMAGE, 2, IMAGE, 3])]
    ids, mask = padded(rows, left=left)
    whole = torch.ones(2, 8, 8).tril() * mask[:, None] * mask[:, :, None]
    patterns = [
        (torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(s)) ** 3) * whole[:, None] for s in (0, 1)
    ]
    patterns = [pattern / pattern.sum(dim=-1, keepdim=True).clamp(min=1e-9) for pattern in patterns]
    modality = map_of(ids, mask)
    first = mask.argmax(dim=1)
    chosen = torch.nn.functional.one_hot(first + 2, 8) if sinks == "mask" else sinks
    result = modality_null(cache_of_patterns(patterns), modality, sinks=chosen)
    expected = head_specialization(cache_of_patterns(patterns), modality, sinks=chosen)
    for index, name in enumerate(result.modalities):
        theirs = expected.mass[..., expected.modalities.index(name)]
        torch.testing.assert_close(result.mass[..., index], theirs, equal_nan=True, rtol=1e-6, atol=1e-7)
    assert result.mass[1, ..., result.modalities.index("audio")].isnan().all()
    if sinks == "mask":
        return
    alone_patterns = [pattern[1:, :, mask[1].bool()][..., mask[1].bool()] for pattern in patterns]
    alone = modality_null(cache_of_patterns(alone_patterns), map_of(rows[1][None]), sinks=sinks)
    for name in ("z", "p_value", "null_sd"):
        torch.testing.assert_close(getattr(result, name)[1:, ..., :2], getattr(alone, name), rtol=1e-9, atol=1e-12)


def test_layers_that_see_other_positions_are_shuffled_among_these():
    patterns = causal_patterns(2, 1, 2, 8)
    near = torch.ones(8, 8).tril() - torch.ones(8, 8).tril(-4)
    patterns[1] = patterns[1] * near / (patterns[1] * near).sum(dim=-1, keepdim=True)
    local = {"use_local_attn": True, "attn_types": ["global", "local"], "window_size": 4}
    result = modality_null(cache_of_patterns(patterns, **local), map_of(IDS))
    row = patterns[1][0, :, -1, 4:].double()  # text, sound, image, text
    torch.testing.assert_close(result.null_mean[0, 1], row.mean(dim=-1, keepdim=True) * torch.tensor([2.0, 1, 1]))
    without_window = modality_null(cache_of_patterns(patterns[:1]), map_of(IDS))
    torch.testing.assert_close(result.z[0, 0], without_window.z[0, 0], rtol=0, atol=0)


def test_even_attention_is_no_news_and_a_planted_head_is():
    ids = torch.tensor([[1] * 10 + [IMAGE] * 30 + [2] * 24])
    even = torch.ones(64, 64).tril()
    on_image = 0.001 + even * (ids[0] == IMAGE)
    spike = 0.001 + even * (torch.arange(64) == 20)  # one image position has it all
    patterns = torch.stack([even, on_image.tril(), spike.tril()])
    patterns = (patterns / patterns.sum(dim=-1, keepdim=True))[None]
    result = modality_null(cache_of_patterns([patterns]), map_of(ids), shuffles=999)
    assert result.z[0, 0, 0].tolist() == [0, 0] and result.p_value[0, 0, 0].tolist() == [1, 1]
    image = result.modalities.index("image")
    assert result.z[0, 0, 1, image] > 7 and result.p_value[0, 0, 1, image] == 1 / 1000
    assert result.mass[0, 0, 2, image] > 0.9 and result.p_value[0, 0, 2, image] > 0.3  # chance has it half of the time


def test_blocks_of_shuffles_change_nothing(monkeypatch):
    cache, modality = cache_of_patterns(causal_patterns(2, 1, 2, 8)), map_of(IDS)
    expected = modality_null(cache, modality)
    monkeypatch.setattr(import_module("lensplug.analysis.attention.modality_null"), "NUMBERS_AT_ONCE", 100)
    torch.testing.assert_close(modality_null(cache, modality).p_value, expected.p_value, rtol=0, atol=0)
    assert (modality_null(cache, modality, seed=1).p_value != expected.p_value).any()


def test_results_of_other_modalities_combine():
    both = modality_null(cache_of_patterns(causal_patterns(2, 1, 2, 8)), map_of(IDS))
    text = modality_null(cache_of_patterns(causal_patterns(2, 1, 2, 4)), map_of(torch.ones(1, 4, dtype=torch.long)))
    combined = ModalityNull.combine([text, both])
    assert combined.modalities == ("text", "image", "audio") and combined.shuffles == 200
    torch.testing.assert_close(combined.z[1], both.z[0], rtol=0, atol=0)
    assert combined.z[0, ..., 0].eq(0).all() and combined.z[0, ..., 1:].isnan().all()
    frame = combined.to_dataframe()
    assert frame["count"].tolist() == [2, 1, 1] * 4
    np.testing.assert_allclose(frame["z"][0], (text.z[0, 0, 0, 0] + both.z[0, 0, 0, 0]) / 2)
    low = (combined.p_value <= 0.05).double().masked_fill(combined.p_value.isnan(), torch.nan).nanmean(dim=0)
    np.testing.assert_allclose(frame["share_p_below_0.05"], low.flatten())
    each = combined.to_dataframe(per_example=True)
    assert len(each) == 2 * 12
    np.testing.assert_array_equal(each["p_value"], combined.p_value.flatten())
    np.testing.assert_array_equal(combined.by_example()["z"], combined.z.flatten(1))


def test_figure_holds_mean_z_by_modality():
    result = modality_null(cache_of_patterns(causal_patterns(2, 1, 2, 8)), map_of(IDS))
    fig = views.modality_null(result, modality="audio")
    assert [trace.visible for trace in fig.data] == [False, False, True]
    np.testing.assert_allclose(np.array(fig.data[1].z, dtype=float), result.z[0, ..., 1], atol=1e-5)
    assert fig.data[2].colorbar.title.text == "z, audio"  # where there are no buttons, too
    assert f"p = {float(result.p_value[0, 1, 0, 1]):.3g}" in fig.data[1].customdata[1][0]
    assert [button.args[0]["visible"] for button in fig.layout.updatemenus[0].buttons] == np.eye(3, dtype=bool).tolist()
    assert views.draw(result).data[1].visible  # the image first
    with pytest.raises(LensplugError, match="modality is 'video', this result has text, image, audio."):
        views.modality_null(result, modality="video")


def test_what_is_refused():
    cache, modality = cache_of_patterns(causal_patterns(2, 1, 2, 8)), map_of(IDS)
    with pytest.raises(LensplugError, match="shuffles is 0, expected at least 1."):
        modality_null(cache, modality, shuffles=0)
    with pytest.raises(LensplugError, match="shuffles is 10,000,000, expected at most 1,000,000"):
        modality_null(cache, modality, shuffles=10_000_000)
    with pytest.raises(LensplugError, match="from query 0 nothing but the sink is in sight"):
        modality_null(cache, modality, query=0)
    with pytest.raises(LensplugError, match="sinks has the shape"):
        modality_null(cache, modality, sinks=[[1, 0]])
