"""Head specialization: uniform attention is chance exactly; masses, entropy and averages by hand and by numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.caches import ROTARY, cache_of_patterns, causal_patterns, padded, run, text_model, tokens
from support.models import text_model as language_model
from support.published import PUBLISHED, published_heads

import lensplug
from lensplug.analysis import HeadSpecialization, head_specialization, modality_null
from lensplug.errors import LensplugError
from lensplug.geometry import ImageGrid
from lensplug.interventions import Knockout
from lensplug.positions.modality_map import ModalityMap

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
        for sinks in ("first", None):
            result = head_specialization(cache, modality, query=query, sinks=sinks)
            assert bool(((result.ratio == 1) & (result.preference == 0) | result.mass.isnan()).all())
    assert int((result.ratio == 1).sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_uniform_attention_is_chance_exactly_at_every_query_position(dtype):
    row = mixed(31)
    modality, cache = map_of(row[None]), cache_of_patterns([uniform(torch.ones(1, len(row)), 2, dtype)] * 2)
    for query in range(len(row)):
        result = head_specialization(cache, modality, query=query)
        assert result.modalities == (*(n for n in modality.names if modality.mask(n)[0, 1 : query + 1].any()), "sink")
        for one, other in ((result.ratio, 1), (result.preference, 0)):
            assert torch.equal(one, torch.full_like(one, other))  # of the one at position 0, with chance 1, too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("exclude_sink", [True, False])
def test_uniform_attention_is_chance_exactly_over_thousands_of_positions(dtype, exclude_sink):
    length = 3001
    pattern = torch.full((length,), 1 / length).to(dtype).expand(1, 1, length, length)
    result = head_specialization(cache_of_patterns([pattern]), map_of(mixed(length)[None]), exclude_sink=exclude_sink)
    classes = 3 if exclude_sink else 4
    assert result.ratio.flatten().tolist() == [1.0] * classes
    assert result.preference.flatten().tolist() == [0.0] * classes


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


def last_row(rows: list[list[float]]) -> torch.Tensor:
    """A pattern whose heads have these rows at the last position; the others look at themselves."""
    pattern = torch.eye(len(rows[0])).repeat(1, len(rows), 1, 1)
    pattern[0, :, -1] = torch.tensor(rows)
    return pattern


def by_hand(row: list[float] = ROW, **options: Any) -> HeadSpecialization:
    """Two layers of one head, the second looking at its own position only."""
    return head_specialization(
        cache_of_patterns([last_row([row]), torch.eye(5)[None, None]]),
        map_of(torch.tensor([[1, IMAGE, IMAGE, 2, 3]])),
        **options,
    )


def test_mass_chance_and_the_readings_by_hand():
    result = by_hand()
    assert result.modalities == ("text", "image", "sink") and result.query.tolist() == [4]
    mass, chance = [[0.3, 0.2, 0.5], [1.0, 0.0, 0.0]], [0.4, 0.4, 0.2]
    torch.testing.assert_close(result.mass[0, :, 0], torch.tensor(mass), check_dtype=False)
    torch.testing.assert_close(result.chance[0], torch.tensor([chance, chance]), check_dtype=False)
    torch.testing.assert_close(result.ratio[0, :, 0], torch.tensor([[0.75, 0.5, 2.5], [2.5, 0, 0]]))
    odds = [math.log(m / (1 - m)) - math.log(c / (1 - c)) for m, c in zip(mass[0], chance, strict=True)]
    torch.testing.assert_close(result.preference[0, 0, 0], torch.tensor(odds))
    torch.testing.assert_close(result.largest[0, :, 0], torch.tensor([[0.3, 0.15, 0.5], [1, 0, 0]]), check_dtype=False)
    image = -(1 / 4 * math.log(1 / 4) + 3 / 4 * math.log(3 / 4))
    torch.testing.assert_close(result.entropy[0, 0, 0], torch.tensor([0, image, 0]), check_dtype=False)
    assert math.isnan(result.entropy[0, 1, 0, 1])  # nothing to be even about
    assert result.labels == [["mixed"], ["text"]] and result.prefers == [["sink"], ["text"]]
    first: list[Any] = [(0, 0, pytest.approx(0.2))]
    assert result.top("image", k=1) == first
    assert result.top("image", k=5, by="ratio") == [(0, 0, pytest.approx(0.5)), (1, 0, 0.0)]
    assert result.top("sink", k=1, by="preference")[0][2] == pytest.approx(odds[2])
    with pytest.raises(LensplugError, match="'audio', this result has text, image, sink"):
        result.top("audio")
    with pytest.raises(LensplugError, match="by is 'odds', expected 'mass', 'preference' or 'ratio'"):
        result.top("image", by="odds")  # type: ignore[arg-type]


def test_a_head_that_has_all_or_nothing_is_as_far_from_chance_as_the_clamp():
    result = by_hand()
    end = math.log(1e-6 / (1 - 1e-6))
    expected = [-end - math.log(0.4 / 0.6), end - math.log(0.4 / 0.6), end - math.log(0.2 / 0.8)]
    torch.testing.assert_close(result.preference[0, 1, 0], torch.tensor(expected))


def test_of_two_classes_preference_for_one_is_minus_that_for_the_other():
    cache = cache_of_patterns(causal_patterns(2, 1, 4, 9))
    result = head_specialization(cache, map_of(torch.tensor([[1, *[IMAGE] * 6, 2, 3]])), sinks=None)
    assert result.modalities == ("text", "image")
    torch.testing.assert_close(result.preference[..., 0], -result.preference[..., 1], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(result.mass.sum(dim=-1), torch.ones(1, 2, 4), check_dtype=False)


def test_both_readings_are_said_in_words():
    result = by_hand()
    assert result.in_words(0, 0) == (
        "layer 0, head 0 looks at no class with two thirds of its attention and prefers the sink (+1.4 nats)"
    )
    assert result.in_words(1, 0) == (
        "layer 1, head 0 looks at text (1.000 of its attention, chance 0.400) and prefers text (+14.2 nats)"
    )
    with pytest.raises(LensplugError, match="layer 2, head 0 is asked for, the result has 2 x 1"):
        result.in_words(2, 0)


def test_an_even_head_has_the_entropy_of_its_number_of_positions():
    result = by_hand([0.2] * 5, sinks=None)
    torch.testing.assert_close(result.entropy[0, 0, 0], torch.tensor([math.log(3), math.log(2)]), check_dtype=False)
    assert result.ratio[0, 0, 0].tolist() == [1.0, 1.0] and result.labels[0] == ["mixed"]
    assert result.prefers[0] == ["nothing"] and result.in_words(0, 0).endswith("prefers nothing")


def test_which_positions_are_sinks_is_chosen():
    assert by_hand(sinks=None).modalities == ("text", "image")
    torch.testing.assert_close(by_hand(sinks=None).mass[0, 0, 0], torch.tensor([0.8, 0.2]), check_dtype=False)
    given = by_hand(sinks=torch.tensor([[0, 0, 1, 1, 0]]))
    torch.testing.assert_close(given.mass[0, 0, 0], torch.tensor([0.5, 0.05, 0.45]), check_dtype=False)
    assert given.chance[0, 0].tolist() == [0.4, 0.2, 0.4] and "2 positions given" in given.provenance.convention
    first = last_row([ROW])
    ids = torch.tensor([[1, IMAGE, IMAGE, 2, 3]])
    modality = ModalityMap.build(ids, torch.ones_like(ids), placeholder_ids={"image": IMAGE}, special_ids=[2])
    special = head_specialization(cache_of_patterns([first]), modality, sinks="special")
    torch.testing.assert_close(special.mass[0, 0, 0], torch.tensor([0.0, 0.2, 0.8]), check_dtype=False)
    assert special.labels == [["sink"]] and special.chance[0, 0].tolist() == [0.2, 0.4, 0.4]
    usual = head_specialization(cache_of_patterns([first]), modality)
    torch.testing.assert_close(usual.mass[0, 0, 0], torch.tensor([0.3, 0.2, 0.5]), check_dtype=False)
    for sinks, message in (
        ("last", "sinks is 'last', expected 'first', 'special', a Sinks, a list, a tensor or None"),
        (torch.ones(1, 4), r"sinks has the shape \[1, 4\], expected .* a mask of the shape \[1, 5\]"),
        (torch.full((1, 5), 2), "a mask of the shape"),
    ):
        with pytest.raises(LensplugError, match=message):
            by_hand(sinks=sinks)
    with pytest.raises(LensplugError, match="sinks is None: say which"):
        by_hand(sinks=None, exclude_sink=True)


def test_a_sink_is_left_out_by_hand():
    result = by_hand(exclude_sink=True)
    assert result.modalities == ("text", "image")
    torch.testing.assert_close(result.mass[0, 0, 0], torch.tensor([0.6, 0.4]), check_dtype=False)  # of what is left
    torch.testing.assert_close(result.largest[0, 0, 0], torch.tensor([0.6, 0.3]), check_dtype=False)
    assert result.chance[0, 0].tolist() == [0.5, 0.5]
    torch.testing.assert_close(result.ratio[0, 0, 0], torch.tensor([1.2, 0.8]))
    assert "left out" in result.provenance.convention
    ids, mask = padded([mixed(7), mixed(4, seed=1)], left=True)
    shut_out = cache_of_patterns([torch.zeros(2, 1, 7, 7).index_fill(3, torch.tensor([0]), 1.0)])
    result = head_specialization(shut_out, map_of(ids, mask), exclude_sink=True)
    for name in ("mass", "ratio", "preference"):
        assert bool(getattr(result, name)[0].isnan().all())  # all of it lay on the sink: nothing is made up
    one = head_specialization(shut_out, map_of(ids, mask))
    assert one.modalities[-1] == "sink" and one.labels == [["sink"]]
    alone = head_specialization(cache_of_patterns([torch.eye(1)[None, None]]), map_of(torch.tensor([[1]])))
    assert alone.modalities == ("sink",) and alone.mass.item() == 1 and alone.preference.item() == 0
    with pytest.raises(LensplugError, match="nothing but the sink is in sight"):
        head_specialization(
            cache_of_patterns([torch.eye(1)[None, None]]), map_of(torch.tensor([[1]])), exclude_sink=True
        )


def test_heads_that_rest_are_told_from_heads_that_look_at_text():
    """What a trained model does: most heads give the first position nearly all."""
    pattern = last_row([[0.9, 0.04, 0.03, 0.03], [0.05, 0.05, 0.2, 0.7], [0.05, 0.9, 0.03, 0.02]])
    modality = map_of(torch.tensor([[1, IMAGE, 2, 3]]))
    assert head_specialization(cache_of_patterns([pattern]), modality).labels == [["sink", "text", "image"]]
    together = head_specialization(cache_of_patterns([pattern]), modality, sinks=None)
    assert together.labels == [["text", "text", "image"]]


def test_an_earlier_query_does_not_see_what_comes_later():
    row = torch.tensor([[1, 2, IMAGE, 3]])
    result = head_specialization(cache_of_patterns([uniform(torch.ones(1, 4), 1)]), map_of(row), query=1)
    assert result.modalities == ("text", "sink") and result.mass[0, 0, 0].tolist() == [0.5, 0.5]
    assert result.count.tolist() == [[1, 1]]


def test_local_attention_has_chance_inside_its_window_only():
    model = text_model(use_local_attn=True, attn_types=["global", "local", "local"], window_size=4)
    ids = torch.tensor([[IMAGE] * 4 + [1, IMAGE, 1, 1]])
    _, cache = run(model, ids)
    result = head_specialization(cache, map_of(ids))
    for layer, chances in enumerate([(3 / 8, 4 / 8, 1 / 8), (3 / 4, 1 / 4, None), (3 / 4, 1 / 4, None)]):
        looked_at = cache[f"blocks.{layer}.attn.hook_pattern"][0, 0, -1] > 0
        own = looked_at & (ids[0] == IMAGE) & (torch.arange(8) > 0)
        assert float(own.sum() / looked_at.sum()) == chances[1]  # what TransformerLens itself allows
        assert [None if value != value else value for value in result.chance[0, layer].tolist()] == list(chances)
    assert result.count.tolist() == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 1, 0],
    ]  # behind the window the first position is not seen


def test_a_first_layer_with_a_window_does_not_hide_what_later_layers_see():
    """Layer 0 sees the last four positions alone: the image is counted where it is in sight."""
    cfg = {"use_local_attn": True, "attn_types": ["local", "global"], "window_size": 2}
    cache = cache_of_patterns([torch.eye(5)[None, None], torch.full((1, 1, 5, 5), 0.2)], **cfg)
    results = [head_specialization(cache, map_of(torch.tensor([[1, IMAGE, IMAGE, 2, 3]]))) for _ in range(2)]
    whole = HeadSpecialization.combine(results)
    assert whole.modalities == ("text", "image", "sink") and whole.count.tolist() == [[2, 0, 0], [2, 2, 2]]
    table = whole.to_dataframe()
    image = table[table.modality == "image"]
    assert image["count"].tolist() == [0, 2] and image["mass"].tolist()[1] == pytest.approx(0.4)
    lines = whole.by_layer()
    assert lines.count.tolist() == whole.count.tolist() and bool(lines.mass[0, 1].isnan())


def test_bidirectional_attention_has_chance_over_the_whole_row():
    cache = cache_of_patterns([torch.full((1, 1, 4, 4), 0.25)], attention_dir="bidirectional")
    result = head_specialization(cache, map_of(torch.tensor([[1, 2, IMAGE, IMAGE]])), query=0)
    assert result.chance[0, 0].tolist() == [0.25, 0.5, 0.25] and result.ratio[0, 0, 0].tolist() == [1.0] * 3


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
        for name in ("mass", "chance", "entropy", "largest", "ratio", "preference"):
            torch.testing.assert_close(getattr(batch, name)[example], getattr(alone, name)[0], atol=1e-5, rtol=1e-5)
        for layer in range(model.cfg.n_layers):
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"].double().numpy()[0, :, -1, first:]
            sums = [pattern[:, row.numpy()[first:] == token].sum(axis=-1) for token in (1, IMAGE, AUDIO)]
            if not first:
                sums = [sums[0] - pattern[:, 0], *sums[1:], pattern[:, 0]]
            expected = np.stack(sums, axis=-1) / pattern.sum(axis=-1, keepdims=True)
            np.testing.assert_allclose(alone.mass[0, layer], expected, atol=1e-7)


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
    assert whole.modalities == ("text", "image", "audio", "sink") and whole.mass.shape == (4, 2, 3, 4)
    assert whole.count.tolist() == [[4, 3, 1, 4]] * 2
    for by in ("mass", "preference", "ratio"):
        for index, name in enumerate(whole.modalities):
            own = [
                getattr(r, by)[0, ..., r.modalities.index(name)].double().numpy()
                for r in results
                if name in r.modalities
            ]
            np.testing.assert_allclose(whole.average(by)[..., index], np.mean(own, axis=0), rtol=1e-5, atol=1e-6)
            if len(own) > 1:
                error = np.std(own, axis=0, ddof=1) / math.sqrt(len(own))
                np.testing.assert_allclose(whole.error(by)[..., index], error, rtol=1e-5)
    assert torch.equal(whole.mean, whole.average("ratio")) and not bool(whole.standard_error[..., 0].isnan().any())
    assert bool(whole.error()[..., 2].isnan().all())  # one example has none
    assert bool(whole.mass[2, ..., 1:3].isnan().all()) and not bool(whole.mass[2, ..., [0, 3]].isnan().any())
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


def test_the_table_has_one_row_for_each_layer_head_and_class():
    whole = HeadSpecialization.combine(several())
    table = whole.to_dataframe()
    assert len(table) == 2 * 3 * 4
    entry = table[(table["layer"] == 1) & (table["head"] == 2) & (table["modality"] == "image")].iloc[0]
    for by in ("mass", "preference", "ratio"):
        assert entry[by] == pytest.approx(float(whole.average(by)[1, 2, 1]))
        assert entry[f"{by}_standard_error"] == pytest.approx(float(whole.error(by)[1, 2, 1]))
    assert entry["count"] == 3 and entry["chance"] == pytest.approx(np.mean([1 / 4, 1 / 5, 2 / 5]))
    assert (entry["label"], entry["prefers"]) == (whole.labels[1][2], whole.prefers[1][2])
    assert entry["mass"] == pytest.approx(float(whole.mass[[0, 1, 3], 1, 2, 1].mean()))


def test_the_table_of_examples_has_their_own_readings():
    whole = HeadSpecialization.combine(several())
    table = whole.to_dataframe(per_example=True)
    assert len(table) == 4 * 2 * 3 * 4
    entry = table[(table.example == 3) & (table.layer == 1) & (table["head"] == 2) & (table.modality == "image")].iloc[
        0
    ]
    for by in ("mass", "preference", "ratio"):
        assert entry[by] == pytest.approx(float(getattr(whole, by)[3, 1, 2, 1]))
    assert entry["chance"] == pytest.approx(2 / 5) and entry["query"] == 4
    means = table.groupby(["layer", "head", "modality"]).mass.mean()
    assert means[1, 2, "image"] == pytest.approx(float(whole.average()[1, 2, 1]))


def test_each_layer_in_a_line_equals_that_of_numpy():
    whole = HeadSpecialization.combine(several())
    lines = whole.by_layer()
    mass = whole.mass.numpy()
    per_example = np.nanmean(mass, axis=2)  # [example layer class]
    np.testing.assert_allclose(lines.mass, np.nanmean(per_example, axis=0), rtol=1e-9)
    np.testing.assert_allclose(
        lines.mass_standard_error[:, 0], per_example[..., 0].std(axis=0, ddof=1) / math.sqrt(4), rtol=1e-6
    )
    share = np.nan_to_num(mass)
    looks = np.where(share.max(axis=-1) >= 2 / 3, share.argmax(axis=-1), 4)
    for label, name in enumerate(lines.labels):
        assert name == ("text", "image", "audio", "sink", "mixed")[label]
        of_example = (looks == label).mean(axis=2)
        np.testing.assert_allclose(lines.share[:, label], of_example.mean(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            lines.share_standard_error[:, label], of_example.std(axis=0, ddof=1) / 2, rtol=1e-6, atol=1e-12
        )
    np.testing.assert_allclose(lines.share.sum(dim=-1), 1)
    table = lines.to_dataframe()
    assert len(table) == 2 * (4 + 5) and set(table.measure) == {"mass", "heads"}
    one = table[(table.layer == 1) & (table.measure == "mass") & (table.name == "image")].iloc[0]
    assert one["mean"] == pytest.approx(float(lines.mass[1, 1])) and one["count"] == 3


def gridded(ids: torch.Tensor, view: list[int], newline: list[bool]) -> ModalityMap:
    """One image whose tokens are of these views."""
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(len(view), 1)
    boxes[torch.tensor(newline)] = math.nan
    grid = ImageGrid(boxes, torch.tensor(view), torch.tensor(newline), 4, 4)
    return ModalityMap.build(ids, torch.ones_like(ids), placeholder_ids={"image": IMAGE}, grids={(0, 0): grid})


def test_the_views_of_an_image_by_hand():
    ids = torch.tensor([[1, *[IMAGE] * 5, 2]])
    modality = gridded(ids, [0, 0, 1, 2, 2], [False, False, False, False, True])
    pattern = last_row([[0.1, 0.05, 0.15, 0.2, 0.25, 0.2, 0.05]])
    result = head_specialization(cache_of_patterns([pattern]), modality)
    assert result.views == ("base", "tiles", "newline")
    assert result.view_mass is not None and result.view_chance is not None
    torch.testing.assert_close(result.view_mass[0, 0, 0], torch.tensor([0.2, 0.45, 0.2]), check_dtype=False)
    torch.testing.assert_close(result.view_chance[0, 0], torch.tensor([2 / 7, 2 / 7, 1 / 7]), check_dtype=False)
    torch.testing.assert_close(result.view_mass.sum(dim=-1), result.mass[..., 1])
    without = head_specialization(cache_of_patterns([pattern]), modality, exclude_sink=True)
    assert without.view_mass is not None
    torch.testing.assert_close(without.view_mass[0, 0, 0], torch.tensor([2, 4.5, 2]) / 9, check_dtype=False)
    lines = result.by_layer()
    assert lines.classes == ("text", "image", "sink", "image: base", "image: tiles", "image: newline")
    torch.testing.assert_close(lines.mass[0, 3:], torch.tensor([0.2, 0.45, 0.2]), check_dtype=False)
    plain = head_specialization(cache_of_patterns([pattern]), map_of(ids))
    assert plain.views == () and plain.view_mass is None
    both = HeadSpecialization.combine([result, plain])  # one whose grid is known, one whose is not
    assert both.views == result.views and both.by_layer().count[0].tolist() == [2, 2, 2, 1, 1, 1]
    torch.testing.assert_close(both.by_layer().mass[0, 3:], lines.mass[0, 3:])


def test_an_image_that_begins_the_prompt_keeps_its_first_patch_where_nothing_is_a_sink():
    modality = gridded(torch.tensor([[*[IMAGE] * 3, 2]]), [0, 0, 1], [False, False, False])
    cache = cache_of_patterns([torch.full((1, 1, 4, 4), 0.25)])
    result = head_specialization(cache, modality, sinks=None)
    without = head_specialization(cache, modality)
    assert result.view_mass is not None and without.view_mass is not None
    assert result.mass[0, 0, 0].tolist() == [0.25, 0.75] and result.view_mass[0, 0, 0].tolist() == [0.5, 0.25]
    assert without.view_mass[0, 0, 0].tolist() == [0.25, 0.25]


@pytest.fixture(scope="module")
def published():
    return published_heads()


def test_the_published_sums_are_read_as_published(published):
    image = published.modalities.index("image")
    assert float(published.chance[0, 0, image]) == 1485 / 1507
    np.testing.assert_allclose(25 * published.average()[0, :, image], PUBLISHED, atol=1e-4)
    (labels,), (prefers,) = published.labels, published.prefers
    assert [head for head, label in enumerate(labels) if label == "image"] == [1, 3, 5, 8, 11, 12]
    assert [head for head, label in enumerate(labels) if label == "mixed"] == [9]
    assert labels.count("text") == 7
    assert [head for head, label in enumerate(prefers) if label == "image"] == [12]
    assert published.top("image", 3)[0][:2] == (0, 12) and [head for _, head, _ in published.top("image", 3)] == [
        12,
        3,
        11,
    ]
    assert published.in_words(0, 3).startswith(
        "layer 0, head 3 looks at the image (0.866 of its attention, chance 0.985)"
    )
    assert "prefers text (+2.3 nats)" in published.in_words(0, 3)
    lines = published.by_layer()
    # In 12 of the images heads 1 and 8, whose mean is little above two thirds, are below.
    assert float(lines.share[0, image]) == pytest.approx((13 * 6 + 12 * 4) / 25 / 14)


@pytest.mark.parametrize("shape", [(1, 5), (2, 4), (1, 3)])
def test_a_map_of_other_inputs_is_refused(shape):
    cache = cache_of_patterns(causal_patterns(1, 1, 1, 4))
    with pytest.raises(LensplugError, match=r"the modality map is .*, the cache \[1, 4\]: use the map of the inputs"):
        head_specialization(cache, map_of(tokens(*shape)))


@pytest.mark.parametrize("query", [4, -5])
def test_a_position_out_of_range_is_refused(query):
    with pytest.raises(LensplugError, match=rf"position {query} is out of range .* 0 to 3 \(or -4 to -1\)"):
        head_specialization(cache_of_patterns(causal_patterns(1, 1, 1, 4)), map_of(tokens(1, 4)), query=query)


KNOCKED = [1, 2, IMAGE, IMAGE, IMAGE, 3, AUDIO, 4]


def prompts(*chosen):
    ids, mask = padded([torch.tensor(KNOCKED), torch.tensor(KNOCKED[1:])], left=True)
    return ids[list(chosen)], mask[list(chosen)]


@pytest.fixture(scope="module")
def even():
    """A lens whose queries are zero, so that attention is uniform over what is seen; two prompts, one left padded."""
    model = language_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    lens = lensplug.wrap(model)
    ids, mask = prompts(0, 1)
    modality = map_of(ids, mask)
    words = ids.masked_fill(ids >= IMAGE, 7)  # placeholders without a medium, as words
    return lens, lens.encode({"input_ids": words, "attention_mask": mask}), modality


def test_what_a_knockout_hides_is_not_counted_as_chance(even):
    lens, inputs, modality = even
    image = modality.mask("image")
    with lens.intervene(Knockout(image, "last", layers=1)):
        _, cache = lens.run_with_cache(inputs, query_positions=[-1])
    result = head_specialization(cache, modality)
    names = list(result.modalities)
    assert names == ["text", "image", "audio", "sink"]
    torch.testing.assert_close(result.chance[0, 0], torch.tensor([3, 3, 1, 1]) / 8, check_dtype=False)
    torch.testing.assert_close(result.chance[1, 0], torch.tensor([2, 3, 1, 1]) / 7, check_dtype=False)
    for example, total in ((0, 5), (1, 4)):  # without the three image positions
        expected = torch.tensor([total - 2, math.nan, 1, 1]) / total
        torch.testing.assert_close(result.chance[example, 1], expected, check_dtype=False, equal_nan=True)
    ratio = result.ratio
    assert float((ratio[~ratio.isnan()] - 1).abs().max()) < 1e-5  # uniform attention is chance, also under a knockout
    second = head_specialization(cache.apply_slice_to_batch_dim([1]), map_of(*prompts(1)))
    torch.testing.assert_close(second.chance[0], result.chance[1], equal_nan=True)


def test_of_a_layer_whose_heads_see_differently_there_is_no_chance(even):
    lens, inputs, modality = even
    with lens.intervene(Knockout(modality.mask("image"), "last", layers=1, heads=[0])):
        _, cache = lens.run_with_cache(inputs, query_positions=[-1])
    result = head_specialization(cache, modality)
    assert bool(result.chance[:, 1].isnan().all()) and not bool(result.chance[:, 0].isnan().any())
    assert float(result.mass[0, 1, 0, 1]) == 0 and float(result.mass[0, 1, 1, 1]) == pytest.approx(3 / 8)
    assert "no chance in layers [1]" in result.provenance.convention
    with pytest.raises(LensplugError, match="cuts some heads of layer 1"):
        modality_null(cache, modality, shuffles=10)
    with lens.intervene(Knockout(modality.mask("image"), [3], layers=1, heads=[0])):  # another query
        _, cache = lens.run_with_cache(inputs, query_positions=[-1])
    assert not bool(head_specialization(cache, modality).chance.isnan().any())
