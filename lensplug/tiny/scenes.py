"""Scenes: images with one coloured shape, and questions whose answers are known.

The data of the tiny LLaVA-OneVision. Each scene is a noisy grey image with a few grey shapes
(distractors) and one coloured shape at one of five places. A question asks for its colour, its shape
or its place, and asks either for one capitalised word ("Red") or for a phrase ("The color is red"), so
that the same fact is answered by different tokens. Everything follows from the random generator: the
same seed draws the same scene. Use it to make inputs whose true answer, and whose true place in
pixels, you know; it says nothing about natural images.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "purple": (150, 60, 190),
    "orange": (240, 140, 40),
}
SHAPES = ("ring", "square", "triangle", "cross")
PLACES = {  # the centre of the shape, as a fraction of width and height
    "left": (0.28, 0.5),
    "right": (0.72, 0.5),
    "top": (0.5, 0.28),
    "bottom": (0.5, 0.72),
    "center": (0.5, 0.5),
}
SIZES = ((48, 48), (96, 48), (48, 96), (80, 64), (64, 88), (96, 96), (120, 120))
"""(width, height) in pixels of the images that are drawn; each leads to one of several tile grids,
from few positions to many."""

TOPICS = ("color", "shape", "place")


@dataclass(frozen=True)
class Scene:
    """One image and what is true of it."""

    image: Image.Image
    color: str
    shape: str
    place: str
    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1) of the coloured shape, in pixels."""

    def fact(self, topic: str) -> str:
        """The lower-case word that answers a question about `topic`."""
        return str(getattr(self, topic))


@dataclass(frozen=True)
class Question:
    """A prompt and the answer that is right for one scene."""

    prompt: str
    answer: str
    topic: str
    single_word: bool


def draw_scene(
    rng: random.Random,
    *,
    size: tuple[int, int] | None = None,
    color: str | None = None,
    shape: str | None = None,
    place: str | None = None,
) -> Scene:
    """Draw one scene; what is not given is chosen by `rng`.

    Args:
        rng: The source of every choice.
        size: Width and height in pixels; one of `SIZES` if not given.
        color: A key of `COLORS`.
        shape: One of `SHAPES`.
        place: A key of `PLACES`.
    """
    width, height = size or rng.choice(SIZES)
    color = color or rng.choice(tuple(COLORS))
    shape = shape or rng.choice(SHAPES)
    place = place or rng.choice(tuple(PLACES))
    image = _noisy_background(rng, width, height)
    draw = ImageDraw.Draw(image)

    radius = min(width, height) * rng.uniform(0.25, 0.29)
    x = width * PLACES[place][0] + radius * rng.uniform(-0.2, 0.2)
    y = height * PLACES[place][1] + radius * rng.uniform(-0.2, 0.2)
    for _ in range(rng.randint(1, 3)):
        _draw_distractor(rng, draw, width, height, avoid=(x, y, radius))
    jitter = np.array([rng.randint(-15, 15) for _ in range(3)])
    fill = tuple(int(v) for v in np.clip(np.array(COLORS[color]) + jitter, 0, 255))
    _draw_shape(draw, shape, x, y, radius, fill)
    box = (max(x - radius, 0.0), max(y - radius, 0.0), min(x + radius, float(width)), min(y + radius, float(height)))
    return Scene(image=image, color=color, shape=shape, place=place, box=box)


def ask(rng: random.Random, scene: Scene, *, topic: str | None = None, single_word: bool | None = None) -> Question:
    """A question about `scene` and its right answer; what is not given is chosen by `rng`."""
    topic = topic or rng.choice(TOPICS)
    single_word = rng.random() < 0.6 if single_word is None else single_word
    fact = scene.fact(topic)
    ending = "Answer single word." if single_word else "Answer in a phrase."
    answer = fact.capitalize() if single_word else f"The {topic} is {fact}"
    return Question(f"What is the {topic}? {ending}", answer, topic, single_word)


def every_text() -> list[str]:
    """Every prompt and answer that `ask` can give: the corpus of the tiny tokenizer."""
    texts = [f"What is the {topic}? {e}" for topic in TOPICS for e in ("Answer single word.", "Answer in a phrase.")]
    facts = {"color": tuple(COLORS), "shape": SHAPES, "place": tuple(PLACES)}
    for topic, words in facts.items():
        texts += [word.capitalize() for word in words]
        texts += [f"The {topic} is {word}" for word in words]
    return texts


def _noisy_background(rng: random.Random, width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(32))
    level = rng.randint(60, 190)
    pixels = level + noise.normal(0, 14, size=(height, width, 1)) + noise.normal(0, 6, size=(height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _draw_distractor(
    rng: random.Random, draw: ImageDraw.ImageDraw, width: int, height: int, *, avoid: tuple[float, float, float]
) -> None:
    """A grey shape somewhere that leaves the coloured one whole; none where no place was found."""
    radius = min(width, height) * rng.uniform(0.08, 0.15)
    for _ in range(20):
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        if math.hypot(x - avoid[0], y - avoid[1]) > radius + avoid[2] + 1:
            _draw_shape(draw, rng.choice(SHAPES), x, y, radius, (rng.randint(20, 235),) * 3)
            return


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    if shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(2, round(0.4 * r)))
    elif shape == "square":
        draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=fill)
    else:
        arm = 0.32 * r
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
