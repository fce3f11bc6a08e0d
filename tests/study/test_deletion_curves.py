"""Deletion curves of a data set: of each example alone, whatever the batch; against Hugging Face's own forward."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.models import QUESTION
from typer.testing import CliRunner

import lensplug
from lensplug import LensplugError, Study, analysis
from lensplug.app.cli import app
from lensplug.app.study_report import study_report
from lensplug.study.deletion_curves import MAPS, seed_of
from lensplug.tiny.scenes import draw_scene
from lensplug.views import draw
from lensplug.views.page.plain import Table

MODEL = "lensplug.tiny:llava_onevision"
PHRASE = "What is in the picture? Answer in a phrase."
OPTIONS: dict[str, Any] = {"steps": 4, "draws": 2}


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pd.DataFrame:
    """Six pictures of two sizes, one with an answer of several words; all wrong, so that small changes show."""
    folder, rows, colors = tmp_path_factory.mktemp("pictures"), [], ("red", "blue", "green") * 2
    for index, color in enumerate(colors):
        path = folder / f"{index}.png"
        draw_scene(random.Random(index), size=((48, 48), (96, 48))[index % 2], color=color).image.save(path)
        rows.append(
            {"prompt": QUESTION, "image": str(path), "target": colors[index - 1].capitalize(), "shape": "ab"[index % 2]}
        )
    rows[5] |= {"prompt": PHRASE, "target": "A blue ring"}
    return pd.DataFrame(rows)


def measured(folder: Path, table: pd.DataFrame, lens, batch: int, **options) -> Study:
    study = Study(folder, model=MODEL)
    study.add(table)
    study.measure(analysis.deletion_curve, **{**OPTIONS, **options})
    study.run(lens=lens, batch=batch)
    return study


@pytest.fixture(scope="module")
def study(lens, pictures, tmp_path_factory) -> Study:
    return measured(tmp_path_factory.mktemp("studies") / "curves", pictures, lens, 4)


def refuse_difference(curve, other, tolerance=1e-4) -> None:
    for name in ("most_first", "least_first", "random"):
        torch.testing.assert_close(getattr(curve, name), getattr(other, name), atol=tolerance, rtol=1e-4)


def test_curves_are_those_of_each_example_alone(lens, study):
    assert study.failures().empty
    found = study.result(analysis.deletion_curve)
    curves = found.result
    for index, row in enumerate(found.examples.itertuples()):
        inputs = lens.prepare(row.prompt, images=list(row.images), answer=row.target)
        first = int(inputs.modality.mask("generated")[0].nonzero()[0])
        rows = list(range(first - 1, inputs.tokens.shape[1] - 1))
        _, cache, grads = lens.run_with_gradients(inputs, target=inputs)
        relevance = analysis.gradient_rollout(cache, grads, rows=rows).relevance.mean(dim=1)
        alone = analysis.deletion_curve(lens, inputs, relevance, inputs, seed=[seed_of(row.id, 0)], **OPTIONS)
        one = replace(curves, **{name: getattr(curves, name)[index : index + 1] for name in
                                 ("most_first", "least_first", "random", "deleted")})  # fmt: skip
        refuse_difference(one, alone)
        assert one.deleted.tolist() == alone.deleted.tolist()
        if len(rows) == 1:  # one token: its log-probability behind the prompt
            asked = lens.prepare(row.prompt, images=list(row.images))
            with torch.no_grad():
                told = lens.model(asked)[0, -1].log_softmax(dim=-1)[lens.tokenizer(row.target)["input_ids"][0]]
            torch.testing.assert_close(one.most_first[0, 0], told, atol=1e-4, rtol=1e-4)
    assert curves.fractions.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0] and curves.fractions.dtype == torch.float32
    assert curves.provenance.convention.endswith("in the order of gradient_rollout")


def test_the_effect_is_that_of_hugging_faces_own_forward(lens, pictures, tmp_path):
    """By attention: the embeddings of what is deleted are the mean, and no row of the mask sees it."""
    one = measured(tmp_path / "study", pictures[:1], lens, 1, relevance="attention_from", draws=0)
    curve, row = one.result("deletion_curve").result, one.examples.iloc[0]
    inputs = lens.prepare(row.prompt, images=list(row.images))
    _, cache = lens.run_with_cache(inputs)
    attention = torch.stack([cache["pattern", layer][0, :, -1] for layer in range(6)]).mean(dim=(0, 1))
    image = inputs.modality.mask("image")[0].nonzero()[:, 0]
    order = image[attention[image].argsort(descending=True)]
    (token,), count = lens.tokenizer(row.target)["input_ids"], inputs.tokens.shape[1]
    for found, positions in ((curve.most_first[0], order), (curve.least_first[0], order.flip(0))):
        for step in range(5):
            gone = positions[: round(len(image) * step / 4)]
            embeds = inputs.embeds.clone()
            embeds[0, gone] = embeds[0, image].mean(dim=0)
            mask = torch.full((count, count), torch.finfo(torch.float32).min).triu(1)
            mask[:, gone] = torch.finfo(torch.float32).min
            with torch.no_grad():
                hidden = lens.core.decoder(
                    inputs_embeds=embeds, attention_mask=mask[None, None], position_ids=torch.arange(count)[None]
                ).last_hidden_state
                told = lens.hf_model.lm_head(hidden)[0, -1].log_softmax(dim=-1)[token]
            assert float(found[step]) == pytest.approx(float(told), abs=1e-4)
    assert float((curve.most_first - curve.least_first).abs().max()) > 0.1, "this test can fail"


def test_numbers_do_not_depend_on_the_batch_or_the_order(lens, pictures, study, tmp_path):
    together = study.result("deletion_curve")
    turned = measured(tmp_path / "study", pictures[::-1], lens, 1).result("deletion_curve")
    place = {identifier: index for index, identifier in enumerate(turned.examples.id)}
    order = [place[identifier] for identifier in together.examples.id]
    names = ("most_first", "least_first", "random", "deleted")
    turned_back = replace(turned.result, **{name: getattr(turned.result, name)[order] for name in names})
    refuse_difference(together.result, turned_back)
    assert float((together.result.random[0] - together.result.random[2]).abs().max()) > 0.1, "this test can fail"
    assert len({seed_of(identifier, 0) for identifier in place}) == len({seed_of("a", seed) for seed in range(6)}) == 6


@pytest.mark.parametrize("name", sorted(MAPS))
def test_maps_are_chosen_by_name(lens, pictures, tmp_path, name):
    """What is deleted first differs; nothing and everything do not."""
    study = measured(tmp_path / "study", pictures[1:2], lens, 1, relevance=name, draws=0, target=["Blue", "Red"])
    curve = study.result("deletion_curve").result
    assert curve.random.shape == (1, 0, 5) and study.failures().empty
    inputs = lens.prepare(QUESTION, images=[pictures.image[1]])
    relevance = MAPS[name](lens, inputs, ("Blue", "Red"), [-1])
    alone = analysis.deletion_curve(lens, inputs, relevance, ("Blue", "Red"), draws=0, steps=4, seed=[0])
    refuse_difference(curve, alone)
    assert float((curve.most_first - curve.least_first).abs().max()) > 0.1, "this test can fail"


def test_means_by_group_are_those_of_numpy(study):
    found = study.result("deletion_curve")
    curves, groups = found.result, found.examples["shape"].to_numpy()
    means = found.mean(by="shape", replicates=50)
    assert means.labels == ("order", "fraction") and means.groups == ("a", "b")
    for group in "ab":
        rows = means.table[(means.table.group == group) & (means.table.order == "random order")]
        expected = curves.random.mean(dim=1)[groups == group].mean(dim=0)
        np.testing.assert_allclose(rows["mean"], expected, rtol=1e-5)
        assert rows.fraction.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0] and (rows.low <= rows["mean"]).all()
    areas = found.mean(over="fraction", interval=None).table.set_index("order")["mean"]
    assert areas.to_dict() == pytest.approx(
        {
            "most relevant first": float(curves.area["most relevant first"].mean()),
            "least relevant first": float(curves.area["least relevant first"].mean()),
            "random order": float(curves.area["random"].mean()),
        },
        rel=1e-5,
    )
    below = found.mean(number="below_random", over="fraction").table.set_index("order")
    difference = float((curves.area["random"] - curves.area["most relevant first"]).mean())
    assert below.loc["most relevant first", "mean"] == pytest.approx(difference, abs=1e-6)
    assert list(below.index) == ["most relevant first", "least relevant first"]
    panels = draw(means)
    assert [one.text for one in panels.layout.annotations] == ["a", "b"]
    lines = [trace for trace in panels.data if not trace.fill]
    assert len(lines) == 6 and lines[0].x[-1] == 100 and "while positions are deleted" in panels.layout.title.text


def test_they_are_saved_read_compared_and_exported(study, tmp_path):
    found = study.result("deletion_curve")
    again: Any = lensplug.read(found.result.save(tmp_path / "curves.safetensors"))
    assert torch.equal(again.fractions, found.result.fractions) and torch.equal(again.random, found.result.random)
    table = found.to_dataframe()
    assert len(table) == 6 * 3 * 5 and set(table.order) == {
        "most relevant first",
        "least relevant first",
        "random order",
    }
    assert (found.compare(found, over="fraction", permutations=10).table.difference == 0).all()


def test_what_has_nothing_to_delete_or_no_answer_is_a_row(lens, pictures, tmp_path):
    table = pd.concat([pictures[:2], pd.DataFrame({"prompt": [QUESTION], "target": ["Red"]})])
    table.loc[1, "target"] = None
    failed = measured(tmp_path / "study", table, lens, 4).failures()
    assert sorted(error[:56] for error in failed.error) == [
        "deletion_curve: example 0 has no media positions to dele",
        "deletion_curve: the example has no 'target' to be watche",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relevance": "rollout"}, "relevance is 'rollout', expected 'gradient_rollout', 'attention_rollout' or"),
        ({"target": ["Red", "Blue", "Green"]}, "target is a list of 3, expected a pair"),
        ({"position": -2}, "answers of a column are read where each of their tokens is"),
        ({"seed": [1, 2]}, "seed is"),
        ({"inputs": 1}, "takes no option 'inputs' in a study"),
    ],
)
def test_odd_options_are_refused_before_anything_is_written(tmp_path, options, message):
    study = Study(tmp_path / "study", model=MODEL)
    with pytest.raises(LensplugError, match=message):
        study.measure(analysis.deletion_curve, **options)
    with pytest.raises(LensplugError, match="only target may differ between examples"):
        study.measure(analysis.deletion_curve, steps=study.column("target"))
    assert not study.storage.names("measurements")


def test_the_page_says_whether_the_map_means_anything(study, lens, pictures, tmp_path):
    (section,) = [one for one in study_report(study).sections if one.title.startswith("Whether the map finds")]
    (table,) = [part for part in section.parts if isinstance(part, Table)]
    assert [row[:2] for row in table.rows] == [
        ("all", "6"),
        ("a", "3"),
        ("b", "3"),
    ] and "gradient_rollout" in section.text
    below = study.result("deletion_curve").mean(number="below_random", over="fraction").table.iloc[0]
    assert table.rows[0][4] == f"{below['mean']:+.3f} [{below.low:+.3f}, {below.high:+.3f}]"
    finds, chance = "the map finds what the answer needs", "no better than chance"
    assert table.rows[0][5] == (finds if below.low > 0 else chance)
    without = measured(tmp_path / "study", pictures[:2], lens, 4, draws=0)
    (section,) = [one for one in study_report(without).sections if one.title.startswith("Whether the map finds")]
    (table,) = [part for part in section.parts if isinstance(part, Table)]
    assert table.rows[0][3:] == ("", "", "not known: no random orders were drawn")
    compared = study_report(study, other=study)
    assert [one for one in compared.sections if one.title.startswith("Whether the map finds more")]


def test_the_commands_measure_them(pictures, tmp_path):
    """Loaded, run and exported without Python."""
    pictures[:2].to_csv(tmp_path / "manifest.csv", index=False)
    folder = str(tmp_path / "study")
    commands = [
        ["init", folder, "--model", MODEL],
        ["add", folder, str(tmp_path / "manifest.csv")],
        ["measure", folder, "deletion_curve", "--option", "steps=2", "--option", "draws=1",
         "--option", "relevance=attention_rollout", "--option", "target=@target"],
        ["run", folder],
        ["export", folder, "deletion_curve", "--out", str(tmp_path / "curves.csv")],
    ]  # fmt: skip
    for command in commands:
        ended = CliRunner().invoke(app, ["study", *command])
        assert ended.exit_code == 0, ended.output
    assert len(pd.read_csv(tmp_path / "curves.csv")) == 2 * 3 * 3
