"""From pictures to an answer that follows the direction that a probe found, on the tiny trained model."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("sklearn")

import lensplug
from lensplug import analysis
from lensplug.tiny.scenes import draw_scene

QUESTION = "What is the color? Answer single word."
LAYER = 3


@pytest.fixture(scope="module")
def trained():
    return lensplug.tiny.llava_onevision()


@pytest.fixture(scope="module")
def probe(trained, tmp_path_factory):
    """Of 24 pictures, collected batch by batch, as a data set is."""
    colors, files = ["red", "blue"] * 12, []
    pictures = [draw_scene(random.Random(seed), size=(48, 48), color=color).image for seed, color in enumerate(colors)]
    for start in range(0, len(pictures), 8):
        some = pictures[start : start + 8]
        inputs = trained.prepare([QUESTION] * len(some), images=[[picture] for picture in some])
        kept = {"residual_positions": [-1], "query_positions": [], "logit_positions": [-1]}
        _, cache = trained.run_with_cache(inputs, needs=analysis.activations, **kept)
        collected = analysis.activations(cache, inputs, layers=[0, LAYER])
        files.append(collected.save(tmp_path_factory.mktemp("files") / f"{start}.safetensors"))
    return analysis.probe(files, colors, shuffles=10)


def test_the_color_is_read_and_shuffled_colors_are_not(probe):
    at_layer = probe.to_dataframe().set_index("layer").loc[LAYER]
    assert at_layer["accuracy"] == 1 and at_layer["low"] > 0.8
    assert at_layer["shuffled_limit"] < 0.8


@pytest.mark.parametrize(("color", "sign", "answer"), [("blue", 1, "Red"), ("red", -1, "Blue")])
def test_adding_the_direction_changes_the_answer(color, sign, answer, trained, probe):
    move = sign * 8 * probe.spread[1, 0] * probe.direction[1, 0]  # classes are in order: blue, red
    inputs = trained.prepare([QUESTION], images=[[draw_scene(random.Random(99), size=(48, 48), color=color).image]])

    def said(vector: torch.Tensor) -> str:
        def add(residual: torch.Tensor, hook: object) -> torch.Tensor:
            return residual + vector

        logits = trained.run_with_hooks(inputs, fwd_hooks=[(("resid_post", LAYER), add)])
        return trained.tokenizer.decode([int(logits[0, -1].argmax())])

    assert said(torch.zeros_like(move)) == color.capitalize()
    assert said(move) == answer
    across = torch.linalg.qr(torch.stack([probe.direction[1, 0], torch.ones_like(move)], dim=1))[0][:, 1]
    assert said(across * move.norm()) == color.capitalize()  # as long, at a right angle
