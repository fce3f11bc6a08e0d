"""The results of a study: those of each example by itself, read without a model; means, differences, tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from support.scene_studies import by_hand

from lensplug import LensplugError, analysis
from lensplug.study import Study, chunk_files
from lensplug.views import draw


def test_rows_are_what_each_example_gives_by_itself(lens, finished):
    heads, settled = finished.result(analysis.head_specialization), finished.result(analysis.logit_lens)
    examples = heads.examples
    assert len(examples) == 10 and set(examples.id) == set(finished.examples.id)
    needs = [analysis.head_specialization, analysis.logit_lens]
    for index, (inputs, cache) in enumerate(by_hand(lens, examples, needs=needs)):
        alone, said = analysis.head_specialization(cache, inputs.modality), analysis.logit_lens(cache)
        torch.testing.assert_close(heads.result.mass[index], alone.mass[0], atol=1e-5, rtol=1e-4)
        assert heads.result.modalities == alone.modalities and heads.result.views == alone.views
        torch.testing.assert_close(settled.result.log_probability[index], said.log_probability[0], atol=1e-4, rtol=1e-4)
        assert settled.result.top_texts[index][-1] == said.top_texts[0][-1]


def test_counts_are_those_of_all_examples(lens, finished):
    activity = finished.result(analysis.neuron_activity).result
    parts = [
        analysis.neuron_activity(cache, inputs.modality, domain=row.shape)
        for row, (inputs, cache) in zip(
            finished.examples.itertuples(),
            by_hand(lens, finished.examples, needs=[analysis.neuron_activity]),
            strict=True,
        )
    ]
    together = analysis.NeuronActivity.combine(parts)
    assert activity.domains == ("cross", "ring") and activity.examples == 10
    assert torch.equal(activity.positions, together.positions)
    assert (activity.fired - together.fired).abs().max() <= 2  # a number at 0 may fall on either side in a batch


def test_a_result_is_read_without_a_model_and_drawn_as_ever(finished):
    heads = Study(finished.storage.place).result("head_specialization")
    assert type(heads.result) is analysis.HeadSpecialization
    assert heads.result.by_layer().to_dataframe().shape[0] > 0
    assert draw(heads.result).data


def test_means_are_those_of_numpy(finished):
    heads = finished.result(analysis.head_specialization)
    means = heads.mean(by="shape", number="mass", replicates=50)
    shapes, mass = heads.examples["shape"].to_numpy(), heads.result.mass.flatten(1).numpy()
    for group in ("cross", "ring"):
        table = means.table[means.table.group == group]
        values = mass[shapes == group]
        np.testing.assert_allclose(table["mean"], values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(table.standard_error, values.std(axis=0, ddof=1) / np.sqrt(len(values)), rtol=1e-9)
        assert (
            (table["count"] == 5).all() and (table.low <= table["mean"]).all() and (table["mean"] <= table.high).all()
        )
    everything = heads.mean(interval=None)
    assert everything.groups == ("all",) and everything.table.low.isna().all()
    layers = finished.result(analysis.logit_lens).mean(number="target_on_top", interval="normal")
    assert layers.labels == ("entry",) and layers.table["mean"].iloc[-1] == 1.0


def test_means_by_layer_are_those_of_the_result_in_memory(finished):
    heads = finished.result(analysis.head_specialization)
    of_layers = heads.mean(over="head")
    assert of_layers.labels == ("layer", "modality") and of_layers.number == "mass"
    by_layer = heads.result.by_layer().to_dataframe().query("measure == 'mass'").set_index(["layer", "name"])
    table = of_layers.table.set_index(["layer", "modality"])
    found = by_layer.loc[table.index]
    np.testing.assert_allclose(table["mean"], found["mean"], rtol=1e-5)
    np.testing.assert_allclose(table.standard_error, found.standard_error, rtol=1e-4)
    compared = heads.difference("ring", "cross", by="shape", over="head", permutations=20)
    assert len(compared.table) == 6 * 7 and "head" not in compared.table
    with pytest.raises(LensplugError, match="no label 'heads' to average over, but layer, head, modality"):
        heads.mean(over="heads")


def test_the_mean_of_settled_is_the_share_of_examples_that_have_settled(finished):
    settled = finished.result(analysis.logit_lens)
    layers = settled.result.settled_layer[:, 0].numpy()
    shares = settled.mean(number="settled", interval=None).table.set_index("entry")["mean"]
    assert shares.tolist() == [float((layers <= layer).mean()) for layer in range(-1, 6)]


def test_a_table_of_all_examples(finished):
    heads = finished.result(analysis.head_specialization)
    table = heads.to_dataframe()
    assert len(table) == 10 * 6 * 6 * 3 and set(table["shape"]) == {"ring", "cross"}
    by_hand = table.groupby(["shape", "layer", "head", "modality"]).mass.mean()
    means = heads.mean(by="shape", number="mass", interval=None).table
    rows = means.set_index(["group", "layer", "head", "modality"])["mean"]
    np.testing.assert_allclose(by_hand.sort_index().to_numpy(), rows.sort_index().to_numpy(), rtol=1e-12)


def test_groups_are_compared(finished):
    heads = finished.result(analysis.head_specialization)
    found = heads.difference("ring", "cross", by="shape", permutations=200)
    shapes, mass = heads.examples["shape"].to_numpy(), heads.result.mass.flatten(1).numpy()
    expected = mass[shapes == "ring"].mean(axis=0) - mass[shapes == "cross"].mean(axis=0)
    every = found.table.set_index(list(found.labels)).difference.dropna()
    np.testing.assert_allclose(every.to_numpy(), expected, atol=1e-12)
    assert not found.paired
    same = heads.compare(heads)
    assert same.paired and (same.table.difference.dropna() == 0).all()
    with pytest.raises(LensplugError, match="no example with results has shape 'star'"):
        heads.difference("star", "cross", by="shape")


def test_a_chunk_in_which_everything_failed_has_the_same_schema(finished):
    measurements = finished.result("logit_lens").made.measurements
    failed = chunk_files.Outcome()
    failed.failed("a", measurements, chunk_files.Failure("LensplugError", "broken"))
    table = chunk_files.table(["a"], failed, measurements, {}, "node")
    there = pq.read_table(next((Path(finished.storage.place) / "results").rglob("*.parquet")))
    assert table.schema.equals(there.schema) and table["error"].to_pylist() == ["broken"]
    assert table["logit_lens.top_texts"].null_count == 1


def test_duckdb_and_polars_can_read_the_folder(finished):
    """They read Parquet; so does pandas, of any of the files."""
    table = pd.concat(map(pd.read_parquet, sorted((Path(finished.storage.place) / "results").rglob("*.parquet"))))
    assert len(table) == 10 and table["head_specialization.mass"].map(len).unique().tolist() == [6 * 6 * 7]
    assert table["logit_lens.rank"].map(len).unique().tolist() == [7]
