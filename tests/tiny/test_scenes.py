"""The drawn scenes: the same seed draws the same, and what is said of a picture is true of its pixels."""

import random

import numpy as np
import pytest

from lensplug.tiny.scenes import COLORS, PLACES, SHAPES, SIZES, TOPICS, ask, draw_scene, every_text


def test_the_same_seed_draws_the_same_scene():
    first, second = (draw_scene(random.Random(7)) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes() and first.box == second.box
    assert draw_scene(random.Random(8)).image.tobytes() != first.image.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_only_the_named_shape_has_colour_and_it_lies_in_its_box(size):
    rng = random.Random(1)
    for color in COLORS:
        scene = draw_scene(rng, size=size, color=color)
        pixels = np.asarray(scene.image, dtype=int)
        colourful = pixels.max(axis=2) - pixels.min(axis=2) > 90
        ys, xs = colourful.nonzero()
        x0, y0, x1, y1 = scene.box
        assert len(xs) > 20
        assert x0 - 1 <= xs.min() and xs.max() <= x1 + 1 and y0 - 1 <= ys.min() and ys.max() <= y1 + 1
        mean = pixels[colourful].mean(axis=0)
        nearest = min(COLORS, key=lambda name: np.abs(mean - COLORS[name]).sum())
        assert nearest == color


def test_the_place_is_where_the_box_is():
    rng = random.Random(2)
    for place, (fx, fy) in PLACES.items():
        scene = draw_scene(rng, size=(96, 96), place=place)
        x0, y0, x1, y1 = scene.box
        distances = {name: abs((x0 + x1) / 192 - px) + abs((y0 + y1) / 192 - py) for name, (px, py) in PLACES.items()}
        assert min(distances, key=distances.__getitem__) == place, (fx, fy)


def test_answers_have_the_form_that_the_prompt_asks_for():
    rng = random.Random(3)
    scene = draw_scene(rng, color="red", shape="cross", place="left")
    assert ask(rng, scene, topic="color", single_word=True).answer == "Red"
    assert ask(rng, scene, topic="shape", single_word=False).answer == "The shape is cross"
    assert {ask(rng, scene).topic for _ in range(50)} == set(TOPICS)
    texts = every_text()
    assert len(texts) == 6 + 2 * (len(COLORS) + len(SHAPES) + len(PLACES))
