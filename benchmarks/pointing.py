"""The pointing game: is the strongest pixel of a map inside the box of the shape that was asked about?

python benchmarks/pointing.py

The tiny LLaVA-OneVision is asked about 300 pictures that it has not seen; the maps are those of the position that
writes the answer. Two baselines: a pixel drawn at random, and the middle of the picture. Beside the hits, how
much of the map's mass on the image lies in the box.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import lensplug
from lensplug import analysis
from lensplug.tiny.scenes import ask, draw_scene

PICTURES = 300
UNSEEN = 1_000_003  # training draws from seed 0
VIEWS = ("all", "base", "tiles")


def maps(lens: Any, inputs: Any) -> dict[str, Tensor]:
    """Each method's value for every position, from the position that writes the answer."""
    logits, _ = lens.run_with_cache(inputs, names_filter=[])
    _, cache, grads = lens.run_with_gradients(inputs, target=int(logits[0, -1].argmax()))
    looked = analysis.attention_from(cache, queries=-1)
    layers = looked.by_position()
    found = {f"attention, {name}": row for name, row in layers.items()}
    found["attention, all layers"] = torch.stack(list(layers.values())).mean(dim=0)
    found["rollout"] = analysis.attention_rollout(cache, rows=-1).values[0, 0]
    found["gradient rollout"] = analysis.gradient_rollout(cache, grads, rows=-1).relevance[0, 0]
    return found


def strongest(heat: Tensor) -> tuple[float, float]:
    """The middle (x, y) of the pixels that have the largest value: one cell has many."""
    y, x = (heat == heat.max()).nonzero().float().mean(dim=0).tolist()
    return x + 0.5, y + 0.5


def inside(point: tuple[float, float], box: tuple[float, float, float, float]) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def play(lens: Any, pictures: int = PICTURES) -> Iterator[dict[tuple[str, str], bool | float]]:
    """For each picture, whether each method hits in each view, and what chance would."""
    rng = random.Random(UNSEEN)
    for _ in range(pictures):
        scene = draw_scene(rng)
        question = ask(rng, scene, topic=rng.choice(("color", "shape")), single_word=True)
        inputs = lens.prepare(question.prompt, images=[scene.image])
        grid, at = inputs.modality.image_grid(), inputs.modality.image_positions()
        x0, y0, x1, y1 = scene.box
        hits: dict[tuple[str, str], bool | float] = {
            ("a pixel at random", "all"): (share := (x1 - x0) * (y1 - y0) / (grid.width * grid.height)),
            ("a pixel at random", "mass"): share,
            ("the middle", "all"): inside((grid.width / 2, grid.height / 2), scene.box),
        }
        for method, row in maps(lens, inputs).items():
            for view in VIEWS:
                hits[method, view] = inside(strongest(grid.to_pixels(row[at], view=view)), scene.box)
            on_image = row[at] * grid.placed
            hits[method, "mass"] = float((on_image * grid.overlap(scene.box)).sum() / on_image.sum())
        yield hits


def main() -> None:
    lens = lensplug.tiny.llava_onevision()
    played = list(track(play(lens), total=PICTURES, description="pointing", console=Console(stderr=True)))
    table = Table(title=f"Pointing game on {PICTURES} unseen pictures: hits", title_justify="left")
    table.add_column("map")
    for column in ("both views", "whole image", "tiles", "mass in the box"):
        table.add_column(column, justify="right")
    for method in dict.fromkeys(method for method, _ in played[0]):
        scores = [
            f"{sum(hits[method, column] for hits in played) / PICTURES:.1%}" if (method, column) in played[0] else ""
            for column in (*VIEWS, "mass")
        ]
        table.add_row(method, *scores)
    Console().print(table)


if __name__ == "__main__":
    main()
