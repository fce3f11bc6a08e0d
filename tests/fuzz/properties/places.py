"""Where positions lie: in a picture, in the frames of a video, in a sound; counted pixel by pixel and bin by bin."""

from __future__ import annotations

import math
from functools import cache as once
from typing import Any

import numpy as np
import torch
from support.tolerances import rounding
from transformers import LlavaOnevisionConfig, LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, SiglipVisionConfig

from fuzz.case import Case, holds
from lensplug.families.llava_onevision import image_grid
from lensplug.families.whisper_windows import timeline
from lensplug.geometry import AudioTimeline, ImageGrid, VideoGrid
from lensplug.geometry.image_grid import ViewName

NAN = [math.nan] * 4


def _edges(case: Case, limit: int, most: int) -> list[float]:
    """From 0 to nearly `limit` or to it, at whole pixels or between."""
    inner = sorted(case.real(0, limit) for _ in range(case.integer(0, most - 1)))
    if case.chance():
        inner = sorted({float(round(at)) for at in inner} - {0.0, float(limit)})
    end = float(limit) if case.chance(0.7) else (inner[-1] + limit) / 2 if inner else limit / 2
    return [0.0, *inner, end]


def _view(case: Case, width: int, height: int) -> list[list[float]]:
    """Boxes of a grid, row by row; some without area at the border, as of positions that see padding."""
    x, y = _edges(case, width, 5), _edges(case, height, 5)
    x = [*x, x[-1]] if case.chance(0.2) else x
    return [[x0, y0, x1, y1] for y0, y1 in zip(y, y[1:], strict=False) for x0, x1 in zip(x, x[1:], strict=False)]


def _random_grid(case: Case) -> ImageGrid:
    width, height = case.integer(1, 24), case.integer(1, 24)
    boxes, view, newline = [], [], []
    for number in range(case.integer(1, 2)):
        for box in _view(case, width, height):
            boxes.append(box)
            view.append(number)
            newline.append(False)
            if number and case.chance(0.2):
                boxes.append(NAN)
                view.append(number)
                newline.append(True)
    return ImageGrid(torch.tensor(boxes), torch.tensor(view), torch.tensor(newline), width, height)


def _painted(boxes: np.ndarray, values: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the value of the box that its middle is in, and whether there is one."""
    picture, covered = np.zeros((height, width)), np.zeros((height, width))
    for (x0, y0, x1, y1), value in zip(boxes, values, strict=True):
        for row in range(height):
            for column in range(width):
                if x0 <= column + 0.5 < x1 and y0 <= row + 0.5 < y1:
                    picture[row, column], covered[row, column] = value, 1
    return picture, covered


def _under(box: np.ndarray, width: int, height: int) -> np.ndarray:
    """How much of each pixel is under a box."""
    x0, y0, x1, y1 = box
    columns = [max(0.0, min(x1, at + 1) - max(x0, at)) for at in range(width)]
    rows = [max(0.0, min(y1, at + 1) - max(y0, at)) for at in range(height)]
    return np.outer(rows, columns)


def _parts(grid: ImageGrid, view: str, known: np.ndarray) -> list[np.ndarray]:
    """The tokens of the base view and of the tiles that have a place and a value."""
    boxes = grid.boxes.double().numpy()
    with np.errstate(invalid="ignore"):
        placed = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & known
    base = grid.view.numpy() == 0
    return [placed & own for name, own in (("base", base), ("tiles", ~base)) if view in ("all", name)]


def _allowed(values: torch.Tensor, grid: ImageGrid) -> float:
    return rounding(torch.float32, len(grid) + 2, max(float(values.nan_to_num().abs().max()), 1e-6))


@holds(weight=4)
def pictures_are_painted_pixel_by_pixel(case: Case) -> None:
    grid = _random_grid(case)
    values = case.normal(len(grid))
    values[torch.rand(len(grid), generator=case.generator) < 0.1] = math.nan
    view: ViewName = case.one_of(["all", "base", "tiles"])
    boxes, known = grid.boxes.double().numpy(), ~values.isnan().numpy()
    total, covers = np.zeros((grid.height, grid.width)), np.zeros((grid.height, grid.width))
    spread = np.zeros((grid.height, grid.width))
    mass = 0.0
    for own in _parts(grid, view, known):
        picture, covered = _painted(boxes[own], values.numpy()[own], grid.width, grid.height)
        total, covers = total + picture, covers + covered
        for box, value in zip(boxes[own], values.double().numpy()[own], strict=True):
            under = _under(box, grid.width, grid.height)
            spread += value * under / under.sum()
            mass += value
    case.close(grid.to_pixels(values, view=view), total / np.maximum(covers, 1), _allowed(values, grid), "pixels")
    found = grid.to_pixels(values, view=view, preserve_mass=True)
    case.close(found, spread, len(grid) * _allowed(values, grid), "mass on pixels")
    case.close(found.double().sum(), mass, grid.width * grid.height * _allowed(values, grid), "mass of the picture")


@holds(weight=3)
def overlaps_are_areas(case: Case) -> None:
    grid = _random_grid(case)
    view: ViewName = case.one_of(["all", "base", "tiles"])
    chosen = np.any(_parts(grid, view, np.ones(len(grid), dtype=bool)) or [np.zeros(len(grid), dtype=bool)], axis=0)
    x0, y0 = case.real(-3, grid.width), case.real(-3, grid.height)
    region: Any = (x0, y0, x0 + case.real(0.1, grid.width), y0 + case.real(0.1, grid.height))
    mask = None
    if case.chance():
        region = mask = torch.rand(grid.height, grid.width, generator=case.generator) < 0.4
    expected = np.zeros(len(grid))
    for at in np.flatnonzero(chosen):
        box = grid.boxes[at].double().numpy()
        area = (box[2] - box[0]) * (box[3] - box[1])
        if mask is not None:
            expected[at] = (_under(box, grid.width, grid.height) * mask.numpy()).sum() / area
        else:
            across = max(0.0, min(region[2], box[2]) - max(region[0], box[0]))
            expected[at] = across * max(0.0, min(region[3], box[3]) - max(region[1], box[1])) / area
    # A box's sides are differences of edges in single precision: narrow boxes are known less well.
    sides = (grid.boxes[:, 2:] - grid.boxes[:, :2]).numpy()[chosen]
    narrow = max(float(max(grid.width, grid.height) / sides.min()), 1.0) if len(sides) else 1.0
    case.close(grid.overlap(region, view=view), expected, rounding(torch.float32, 4, narrow), "overlap")


@holds(weight=1)
def frames_of_a_video_are_pictures(case: Case) -> None:
    picture, frames = _random_grid(case), case.integer(1, 4)
    boxes = torch.cat([picture.boxes[picture.view == 0]] * frames + [torch.tensor([NAN])])
    per_frame = int((picture.view == 0).sum())
    frame = torch.tensor([index for index in range(frames) for _ in range(per_frame)] + [-1])
    newline = frame < 0
    times = torch.arange(frames) * case.real(0.1, 2)
    grid = VideoGrid(boxes, frame, newline, picture.width, picture.height, times)
    values = case.normal(len(grid))
    mass = case.chance()
    found = grid.to_pixels(values, preserve_mass=mass)
    box = (0.0, 0.0, case.real(0.1, picture.width), case.real(0.1, picture.height))
    chosen = case.one_of([None, case.integer(0, frames - 1)])
    overlaps = grid.overlap(box, frame=chosen)
    for index in range(frames):
        own = frame == index
        zeros = torch.zeros(per_frame, dtype=torch.long)
        alone = ImageGrid(boxes[own], zeros, zeros.bool(), picture.width, picture.height)
        case.same(found[index], alone.to_pixels(values[own], preserve_mass=mass), "a frame's picture")
        expected = alone.overlap(box) if chosen in (None, index) else torch.zeros(per_frame)
        case.same(overlaps[own], expected, "overlap in a frame")
    seconds = grid.time_s
    assert seconds is not None
    case.same(seconds[:-1], times.repeat_interleave(per_frame), "times")
    case.same(bool(seconds[-1].isnan()) and not bool(overlaps[-1]), True, "a newline has no place")


@once
def _onevision(view: int, patch: int, tiles: str) -> tuple[Any, Any]:
    pinpoints = LlavaOnevisionImageProcessor.image_grid_pinpoints
    scaled = [[h // 384 * view, w // 384 * view] for h, w in pinpoints]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(image_size=view, patch_size=patch),
        image_grid_pinpoints=scaled,
        vision_aspect_ratio=tiles,
    )
    # Its formula for the number of positions, without what it needs besides: a tokenizer and a video processor.
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.vision_feature_select_strategy = "full"
    processor.num_image_tokens = (view // patch) ** 2
    processor.vision_aspect_ratio = tiles
    processor.image_processor = type("Settings", (), {"image_grid_pinpoints": scaled})()
    return config, processor


@holds(weight=2)
def positions_of_llava_onevision_tile_the_picture(case: Case) -> None:
    view, patch = case.one_of([(16, 4), (32, 8), (28, 14), (30, 14), (384, 14)])
    config, processor = _onevision(view, patch, case.one_of(["anyres_max_9", "anyres_max_4"]))
    height, width = case.integer(4, 3 * view), case.integer(4, 3 * view)
    grid = image_grid(config, height, width)
    case.same(len(grid), processor._get_number_of_features(height, width, view, view), "number of positions")
    boxes, placed = grid.boxes.double().numpy(), grid.placed.numpy()
    case.same(bool((boxes[placed] >= 0).all()), True, "inside the picture")
    inside = (boxes[placed][:, 2] <= width * (1 + 1e-6)) & (boxes[placed][:, 3] <= height * (1 + 1e-6))
    case.same(bool(inside.all()), True, "inside the picture")
    side = view // patch
    for own, unseen in (((grid.view == 0).numpy(), (view - side * patch) / view), ((grid.view > 0).numpy(), None)):
        chosen = boxes[own & placed]
        area = ((chosen[:, 2] - chosen[:, 0]) * (chosen[:, 3] - chosen[:, 1])).sum() / (width * height)
        case.same(area <= 1 + 1e-5, True, "no place twice")
        if unseen is not None:
            case.close(area, (1 - unseen) ** 2, rounding(torch.float32, len(chosen)), "area of the base view")


@holds(weight=2)
def sounds_are_painted_bin_by_bin(case: Case) -> None:
    count, bins = case.integer(1, 20), case.integer(1, 60)
    cuts = np.cumsum([case.real(0.02, 1) for _ in range(count + 1)]) - 0.02
    start, end = torch.tensor(cuts[:-1], dtype=torch.float32), torch.tensor(cuts[1:], dtype=torch.float32)
    line = AudioTimeline(start, end, float(end[-1]) * case.one_of([1.0, 0.7]))
    values = case.normal(count)
    found = line.to_seconds(values, bins=bins)
    middles = (np.arange(bins) + 0.5) * line.duration_s / bins
    center = (start.double() + end.double()).numpy() / 2
    for index, middle in enumerate(middles):
        distance = np.abs(center - middle)
        nearest = np.flatnonzero(distance <= distance.min() + rounding(torch.float32, 4, float(end[-1])))
        case.same(any(float(found[index]) == float(values[at]) for at in nearest), True, f"bin {index}")
    case.same(line.padding, start >= line.duration_s, "padding")
    case.close(line.center_s, center, rounding(torch.float32, 2, float(end[-1])), "middles")


@holds(weight=1)
def positions_of_whisper_tile_the_windows(case: Case) -> None:
    size = case.one_of([2, 4])
    count = case.integer(1, 4 * 1500 // size)
    line = timeline(count, size, None)
    start, end = line.start_s.double().numpy(), line.end_s.double().numpy()
    windows = math.ceil(count * size / 1500)
    allowed = rounding(torch.float32, 2, 30 * windows)
    case.close(start[1:], end[:-1], allowed, "no gap between positions")
    case.same(float(start[0]), 0.0, "begins at 0")
    case.same(bool((end > start).all()), True, "every position has a time")
    edges = [index for index in range(count) if (index + 1) * size % 1500 == 0]
    case.close(end[edges], 30.0 * (np.arange(len(edges)) + 1), allowed, "windows of 30 s")
    inner = [index for index in range(count - 1) if (index * size) % 1500 and (index + 1) * size % 1500]
    case.close((end - start)[inner], np.full(len(inner), 0.02 * size), allowed, "seconds of a position")
