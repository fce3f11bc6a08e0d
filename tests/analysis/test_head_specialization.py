"""Head specialization: uniform attention is chance exactly; masses, entropy and averages by hand and by numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from caches import ROTARY, cache_of_patterns, causal_patterns, padded, run, text_model, tokens

from lensplug.analysis import HeadSpecialization, head_specialization
from lensplug.errors import LensplugError
from lensplug.modality import ModalityMap

IMAGE, AUDIO = 48, 49
"""Ids of placeholders."""


def map_of(ids: torch.Tensor, mask: torch.Tensor | None = None) -> ModalityMap:
    mask = torch.ones_like(ids) if mask is None else mask
    return ModalityMap.build(ids, mask, placeholder_ids={"image": IMAGE, "audio": AUDIO})


def mixed(length: int, seed: int = 0) -> torch.Tensor:
    """Words, then images and sounds in random places; the first three positions have one of each."""
    draw = torch.randint(0, 3, (length,), generator=torch.Generator().manual_seed(seed))
    draw[: min(3, length)] = torch.arange(min(3, length))
    return torch.tensor([1, IMAGE, AUDIO])[draw]


def uniform(mask: torch.Tensor, heads: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Uniform causal attention over the positions that are not padding, held in `dtype`."""
    allowed = torch.ones(mask.shape[1], mask.shape[1]).tril() * mask[:, None] * mask[:, :, None]
    weights = allowed / allowed.sum(dim=-1, keepdim=True).clamp(min=1)
    return weights[:, None].expand(-1, heads, -1, -1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_uniform_attention_is_chance_exactly(dtype, left):
    rows = [mixed(n, seed=n) for n in (3, 41, 97)]
    ids, mask = padded(rows, left=left)
    cache = cache_of_patterns([uniform(mask, 2, dtype)] * 2)
    modality = map_of(ids, mask)
    for query in [-1, -2, -3]:
        result = head_specialization(cache, modality, query=query)
        assert bool(((result.ratio == 1) | result.mass.isnan()).all())
    assert int((result.ratio == 1).sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_uniform_attention_is_chance_exactly_at_every_query_position(dtype):
    row = mixed(53)
    modality, cache = map_of(row[None]), cache_of_patterns([uniform(torch.ones(1, len(row)), 2, dtype)] * 2)
    for query in range(len(row)):
        result = head_specialization(cache, modality, query=query)
        assert result.modalities == tuple(n for n in modality.names if modality.mask(n)[0, : query + 1].any())
        assert torch.equal(result.ratio, torch.ones_like(result.ratio))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("exclude_sink", [True, False])
def test_uniform_attention_is_chance_exactly_over_thousands_of_positions(dtype, exclude_sink):
    length = 3001
    pattern = torch.full((length,), 1 / length).to(dtype).expand(1, 1, length, length)
    result = head_specialization(cache_of_patterns([pattern]), map_of(mixed(length)[None]), exclude_sink=exclude_sink)
    assert result.ratio.flatten().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [{}, ROTARY], ids=["gpt2", "rotary-rms"])
def test_a_blind_model_of_transformer_lens_is_chance_exactly(dtype, form):
    """Global and local layers, left padding; queries are zero, so that every score is alike."""
    model = text_model(use_local_attn=True, attn_types=["global", "local", "local"], window_size=4, dtype=dtype, **form)
    for block in model.blocks:
        block.attn.W_Q.data.zero_()
        block.attn.b_Q.data.zero_()
    ids, mask = padded([mixed(n, seed=n) for n in (5, 13)], left=True)
    _, cache = run(model, ids, mask, names_filter=head_specialization.needs)
    result = head_specialization(cache, map_of(ids, mask))
    assert bool(((result.ratio == 1) | result.mass.isnan()).all()) and int((result.ratio == 1).sum()) > 20


ROW = [0.5, 0.05, 0.15, 0.3, 0.0]
"""The attention of one head from the last of five positions: word, image, image, word, word."""


def by_hand(row: list[float] = ROW, **options: Any) -> HeadSpecialization:
    """Two layers of one head, the second looking at its own position only."""
    first, second = torch.eye(5).repeat(1, 1, 1, 1), torch.eye(5)[None, None]
    first[0, 0, 4] = torch.tensor(row)
    return head_specialization(
        cache_of_patterns([first, second]), map_of(torch.tensor([[1, IMAGE, IMAGE, 2, 3]])), **options
    )


def test_mass_entropy_and_largest_weight_by_hand():
    result = by_hand()
    assert result.modalities == ("text", "image") and result.query.tolist() == [4]
    torch.testing.assert_close(result.mass[0, :, 0], torch.tensor([[0.8, 0.2], [1.0, 0.0]]), check_dtype=False)
    torch.testing.assert_close(result.chance[0], torch.tensor([[0.6, 0.4], [0.6, 0.4]]), check_dtype=False)
    torch.testing.assert_close(result.ratio[0, :, 0], torch.tensor([[0.8 / 0.6, 0.5], [1 / 0.6, 0.0]]))
    torch.testing.assert_close(result.largest[0, :, 0], torch.tensor([[0.5, 0.15], [1.0, 0.0]]), check_dtype=False)
    text = -(5 / 8 * math.log(5 / 8) + 3 / 8 * math.log(3 / 8))
    image = -(1 / 4 * math.log(1 / 4) + 3 / 4 * math.log(3 / 4))
    torch.testing.assert_close(result.entropy[0, 0, 0], torch.tensor([text, image]), check_dtype=False)
    assert float(result.entropy[0, 1, 0, 0]) == 0 and math.isnan(result.entropy[0, 1, 0, 1])  # nothing to be even about
    assert result.labels == [["text"], ["text"]]  # shares 1.333 : 0.5, then 1 : 0
    assert result.top("image", k=1) == [(0, 0, pytest.approx(0.5))]
    with pytest.raises(LensplugError, match="'audio', this result has text, image"):
        result.top("audio")


def test_an_even_head_has_the_entropy_of_its_number_of_positions():
    result = by_hand([0.2] * 5)
    torch.testing.assert_close(result.entropy[0, 0, 0], torch.tensor([math.log(3), math.log(2)]), check_dtype=False)
    assert result.ratio[0, 0, 0].tolist() == [1.0, 1.0] and result.labels[0] == ["mixed"]


def test_a_sink_is_left_out_by_hand():
    result = by_hand(exclude_sink=True)
    torch.testing.assert_close(result.mass[0, 0, 0], torch.tensor([0.3, 0.2]), check_dtype=False)
    assert result.chance[0, 0].tolist() == [0.5, 0.5]
    torch.testing.assert_close(result.ratio[0, 0, 0], torch.tensor([1.2, 0.8]))  # 0.3 and 0.2 of what is left, 0.5
    assert "first position left out" in result.provenance.convention
    ids, mask = padded([mixed(7), mixed(4, seed=1)], left=True)
    shut_out = cache_of_patterns([torch.zeros(2, 1, 7, 7).index_fill(3, torch.tensor([0]), 1.0)])
    result = head_specialization(shut_out, map_of(ids, mask), exclude_sink=True)
    assert bool(result.ratio[0].isnan().all())  # all of it lay on the sink: no ratio, not a made-up one


def test_an_earlier_query_does_not_see_what_comes_later():
    row = torch.tensor([[1, 2, IMAGE, 3]])
    result = head_specialization(cache_of_patterns([uniform(torch.ones(1, 4), 1)]), map_of(row), query=1)
    assert result.modalities == ("text",) and result.mass[0, 0, 0, 0] == 1
    assert result.count.tolist() == [1]


def test_local_attention_has_chance_inside_its_window_only():
    model = text_model(use_local_attn=True, attn_types=["global", "local", "local"], window_size=4)
    ids = torch.tensor([[IMAGE] * 4 + [1, IMAGE, 1, 1]])
    _, cache = run(model, ids)
    result = head_specialization(cache, map_of(ids))
    for layer, (text, image) in enumerate([(3 / 8, 5 / 8), (3 / 4, 1 / 4), (3 / 4, 1 / 4)]):
        looked_at = cache[f"blocks.{layer}.attn.hook_pattern"][0, 0, -1] > 0
        assert float(looked_at[ids[0] == IMAGE].sum() / looked_at.sum()) == image  # what TransformerLens itself allows
        assert result.chance[0, layer].tolist() == [text, image]


def test_bidirectional_attention_has_chance_over_the_whole_row():
    cache = cache_of_patterns([torch.full((1, 1, 4, 4), 0.25)], attention_dir="bidirectional")
    result = head_specialization(cache, map_of(torch.tensor([[1, 2, IMAGE, IMAGE]])), query=0)
    assert result.chance[0, 0].tolist() == [0.5, 0.5] and result.ratio[0, 0, 0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("form", [{}, ROTARY], ids=["gpt2", "rotary-rms"])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("first", [0, 1], ids=["whole-row", "without-sink"])
def test_a_padded_batch_equals_each_example_alone_and_a_sum_in_numpy(form, left, first):
    model = text_model(**form)
    rows = [mixed(n, seed=n) for n in (6, 11)]
    ids, mask = padded(rows, left=left)
    batch = head_specialization(run(model, ids, mask)[1], map_of(ids, mask), exclude_sink=bool(first))
    for example, row in enumerate(rows):
        _, cache = run(model, row[None])
        alone = head_specialization(cache, map_of(row[None]), exclude_sink=bool(first))
        for name in ("mass", "chance", "entropy", "largest", "ratio"):
            torch.testing.assert_close(getattr(batch, name)[example], getattr(alone, name)[0], atol=1e-5, rtol=1e-5)
        for layer in range(model.cfg.n_layers):
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"].double().numpy()[0, :, -1, first:]
            sums = [pattern[:, row.numpy()[first:] == token].sum(axis=-1) for token in (1, IMAGE, AUDIO)]
            np.testing.assert_allclose(alone.mass[0, layer], np.stack(sums, axis=-1), atol=1e-7)


def several() -> list[HeadSpecialization]:
    """Examples of one model, some without image or sound, in results of different sizes."""
    model = text_model(n_layers=2, n_heads=3)
    sets = [[1, IMAGE, 2, 3], [1, AUDIO, IMAGE, AUDIO, 3], [1, 2, 3], [1, IMAGE, IMAGE, 4, 5]]
    return [
        head_specialization(
            cache_of_patterns(causal_patterns(2, 1, 3, len(row), seed=i), model), map_of(torch.tensor([row]))
        )
        for i, row in enumerate(sets)
    ]


def test_combined_mean_standard_error_and_count_equal_those_of_numpy():
    results = several()
    whole = HeadSpecialization.combine(results)
    assert whole.modalities == ("text", "image", "audio") and whole.mass.shape == (4, 2, 3, 3)
    assert whole.count.tolist() == [4, 3, 1]
    for index, name in enumerate(whole.modalities):
        own = [r.ratio[0, ..., r.modalities.index(name)].double().numpy() for r in results if name in r.modalities]
        np.testing.assert_allclose(whole.mean[..., index], np.mean(own, axis=0), rtol=1e-6)
        if len(own) > 1:
            error = np.std(own, axis=0, ddof=1) / math.sqrt(len(own))
            np.testing.assert_allclose(whole.standard_error[..., index], error, rtol=1e-5)
    assert bool(whole.standard_error[..., 2].isnan().all())  # one example has none
    assert bool(whole.mass[2, ..., 1:].isnan().all()) and not bool(whole.mass[2, ..., 0].isnan().any())
    nested = HeadSpecialization.combine([HeadSpecialization.combine(results[:2]), *results[2:]])
    torch.testing.assert_close(nested.mean, whole.mean, equal_nan=True)


def test_a_head_without_a_ratio_in_one_example_is_averaged_over_the_others():
    ids = torch.tensor([[1, IMAGE, 2, 3]])
    model = text_model(n_layers=1, n_heads=1)
    on_sink = torch.tensor([1.0, 0, 0, 0]).expand(1, 1, 4, 4)
    patterns = [on_sink, *(causal_patterns(1, 1, 1, 4, seed=seed)[0] for seed in (1, 2))]
    results = [
        head_specialization(cache_of_patterns([pattern], model), map_of(ids), exclude_sink=True) for pattern in patterns
    ]
    whole, own = HeadSpecialization.combine(results), [result.ratio[0].double().numpy() for result in results[1:]]
    np.testing.assert_allclose(whole.mean, np.mean(own, axis=0), rtol=1e-6)
    np.testing.assert_allclose(whole.standard_error, np.std(own, axis=0, ddof=1) / math.sqrt(2), rtol=1e-5)


def test_only_results_of_one_model_and_convention_are_combined():
    first, *_ = several()
    other = head_specialization(
        cache_of_patterns(causal_patterns(3, 1, 3, 4)), map_of(torch.tensor([[1, IMAGE, 2, 3]]))
    )
    with pytest.raises(LensplugError, match="different models or conventions"):
        HeadSpecialization.combine([first, other])
    with pytest.raises(LensplugError, match="different models or conventions"):
        HeadSpecialization.combine([by_hand(), by_hand(exclude_sink=True)])
    with pytest.raises(LensplugError, match="no results"):
        HeadSpecialization.combine([])


def test_the_table_has_one_row_for_each_layer_head_and_modality():
    whole = HeadSpecialization.combine(several())
    table = whole.to_dataframe()
    assert len(table) == 2 * 3 * 3
    entry = table[(table["layer"] == 1) & (table["head"] == 2) & (table["modality"] == "image")].iloc[0]
    assert entry["ratio"] == pytest.approx(float(whole.mean[1, 2, 1])) and entry["count"] == 3
    assert entry["standard_error"] == pytest.approx(float(whole.standard_error[1, 2, 1]))
    assert entry["label"] == whole.labels[1][2]
    assert entry["mass"] == pytest.approx(float(whole.mass[[0, 1, 3], 1, 2, 1].mean()))


@pytest.mark.parametrize("shape", [(1, 5), (2, 4), (1, 3)])
def test_a_map_of_other_inputs_is_refused(shape):
    cache = cache_of_patterns(causal_patterns(1, 1, 1, 4))
    with pytest.raises(LensplugError, match=r"the modality map is .*, the cache \[1, 4\]: use the map of the inputs"):
        head_specialization(cache, map_of(tokens(*shape)))


@pytest.mark.parametrize("query", [4, -5])
def test_a_position_out_of_range_is_refused(query):
    with pytest.raises(LensplugError, match=rf"position {query} is out of range .* 0 to 3 \(or -4 to -1\)"):
        head_specialization(cache_of_patterns(causal_patterns(1, 1, 1, 4)), map_of(tokens(1, 4)), query=query)
