"""LLaVA-OneVision: the boxes against the image processor and the packing of transformers themselves.

The proof needs no formula: a picture whose colours are its own coordinates goes through the real image
processor, each patch is averaged, and the averages go through the model's own `pack_image_features`. What
comes out at a position is the middle of what that position sees.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionModel,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension

from lensplug.families import ProcessedBatch
from lensplug.families.llava_onevision import image_grid, media_layout
from lensplug.geometry import ImageGrid
from lensplug.tiny.image_model import GRID_PINPOINTS, build_tokenizer

GEOMETRIES = {
    "real": (384, 14, LlavaOnevisionImageProcessor.image_grid_pinpoints),
    "tiny": (48, 8, GRID_PINPOINTS),
}
"""Pixels of a view, pixels of a patch, resolutions of the tile grid."""

COUNTS = {(384, 384): 1485, (480, 640): 2929, (768, 768): 3699, (1080, 1920): 7269, (2304, 2304): 7371}
"""(height, width) -> positions by the large model's processor."""

SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


@cache
def model(name: str) -> LlavaOnevisionModel:
    """The geometry asked for, everything else as small as can be, random weights."""
    view, patch, pinpoints = GEOMETRIES[name]
    narrow: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(num_hidden_layers=1, image_size=view, patch_size=patch, **narrow),
        text_config=Qwen2Config(num_hidden_layers=1, num_key_value_heads=2, vocab_size=8, **narrow),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_9",
    )
    return LlavaOnevisionModel(config).eval()


@cache
def processor(name: str, **image_options: Any) -> LlavaOnevisionProcessor:
    view, patch, pinpoints = GEOMETRIES[name]
    size = {"height": view, "width": view}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints, **image_options),
        build_tokenizer(),
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(view // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


def pack(name: str, features: Tensor, size: tuple[int, int], most: str = "anyres_max_9") -> Tensor:
    """The model's own packing of `[view patch channel]`; newlines are NaN."""
    newline = torch.full(features.shape[-1:], torch.nan)
    packed, lengths = model(name).pack_image_features([features], [size], newline, most)
    assert lengths.tolist() == [len(packed[0])]
    return packed[0]


def packed_length(name: str, height: int, width: int, most: str = "anyres_max_9") -> int:
    view, patch, pinpoints = GEOMETRIES[name]
    canvas_h, canvas_w = select_best_resolution((height, width), pinpoints)
    views = 1 + (canvas_h // view) * (canvas_w // view)
    return len(pack(name, torch.zeros(views, (view // patch) ** 2, 1), (height, width), most))


@pytest.mark.parametrize(("size", "expected"), COUNTS.items())
def test_the_real_processor_writes_as_many_placeholders_as_the_grid_has_positions(size, expected):
    height, width = size
    real = processor("real")
    outputs = real(text="<image>", images=Image.new("RGB", (width, height)), return_tensors="pt")
    assert int((outputs["input_ids"] == real.image_token_id).sum()) == expected
    assert packed_length("real", height, width) == expected
    assert len(image_grid(model("real").config, height, width)) == expected


@pytest.mark.parametrize("name", GEOMETRIES)
@settings(max_examples=200, derandomize=True, deadline=None)
@example((1, 4000))
@example((4000, 1))
@given(SIZES)
def test_grid_processor_and_model_count_alike_for_any_size(name, size):
    view = GEOMETRIES[name][0]
    grid = image_grid(model(name).config, *size)
    assert len(grid) == len(grid.boxes) == len(grid.newline)
    assert len(grid) == processor(name)._get_number_of_features(*size, view, view) == packed_length(name, *size)


@pytest.mark.parametrize("size", [(48, 48), (96, 48), (20, 150), (61, 83), (300, 200), (1, 400), (400, 1)])
def test_the_tiny_processor_and_model_run_for_real(size):
    tiny = processor("tiny")
    outputs = tiny(text="<image>", images=Image.new("RGB", size[::-1]), return_tensors="pt")
    features = model("tiny").get_image_features(outputs["pixel_values"], outputs["image_sizes"]).pooler_output
    placeholders = int((outputs["input_ids"] == tiny.image_token_id).sum())
    assert len(image_grid(model("tiny").config, *size)) == placeholders == len(features[0])


def coordinates(height: int, width: int) -> Tensor:
    """A picture of three channels: x and y of each pixel's centre, and 1 (padding is 0)."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])


def seen(name: str, pictures: list[Tensor]) -> list[Tensor]:
    """For each position of each picture the mean x, y and 1 of what it sees, and its tile row, column and base flag."""
    view, patch, pinpoints = GEOMETRIES[name]
    side = view // patch
    raw = processor(name, do_rescale=False, do_normalize=False, image_mean=(0.0, 0.0, 0.0)).image_processor
    result = []
    for pixels, picture in zip(raw([pictures], return_tensors="pt")["pixel_values"], pictures, strict=True):
        height, width = picture.shape[-2:]
        means = torch.nn.functional.avg_pool2d(pixels[..., : side * patch, : side * patch], patch)
        tile = torch.arange(len(pixels)) - 1
        columns = select_best_resolution((height, width), pinpoints)[1] // view
        place = torch.stack([tile // columns, tile % columns, (tile < 0).long()], dim=1).float()
        features = torch.cat([means, place[..., None, None].expand(-1, -1, side, side)], dim=1)
        result.append(pack(name, features.flatten(2).transpose(1, 2), (height, width)))
    return result


def compare_middles(grid: ImageGrid, positions: Tensor, scale: Tensor, slack: Tensor | float = 0.0) -> None:
    """The middle of each box against what its position sees; `scale`: original pixels for each pixel of the view.

    Exact inside. At the border the resampling filter is cut off, and a picture has no coordinates finer
    than its pixels: half a pixel there.
    """
    assert torch.equal(grid.newline, positions.isnan().all(dim=1))
    low, high, share = grid.boxes[:, :2], grid.boxes[:, 2:], positions[:, 2]
    pixel = scale.clamp(min=1)  # the coarser of the two kinds of pixels
    border = torch.minimum(low, torch.tensor([grid.width, grid.height]) - high)
    away = (positions[:, :2] / share[:, None] - (low + high) / 2).abs()
    allowed = torch.where(border > 2 * pixel, 0.01, 0.5 * pixel) + slack
    assert bool((away <= allowed)[share > 1e-6].all())


# One pixel of width would do as well, but torch scales a float picture of width 1 wrongly (antialias, CPU).
@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("real", h, w) for h, w in [*COUNTS, (1, 4000), (4000, 2), (37, 901), (1500, 1111), (200, 140), (2000, 700)]]
    + [("tiny", h, w) for h, w in [(48, 48), (61, 83), (96, 48), (90, 50), (150, 40), (500, 333), (37, 901), (400, 2)]],
)
def test_the_middle_of_every_box_is_what_the_position_sees(name, height, width):
    view, patch, pinpoints = GEOMETRIES[name]
    picture = coordinates(height, width)
    grid = image_grid(model(name).config, height, width)
    (positions,) = seen(name, [picture])
    boxes, (_, _, share, tile_row, tile_column, base) = grid.boxes, positions.T
    is_tile = base == 0
    canvas = select_best_resolution((height, width), pinpoints)
    scaled_h, scaled_w = get_patch_output_size(picture, canvas, ChannelDimension.FIRST)
    squeezed, scaled = torch.tensor([[width / view, height / view], [width / scaled_w, height / scaled_h]])
    scale = torch.where(is_tile[:, None], scaled, squeezed)
    # A position interpolated over the seam of two tiles averages two patches with unseen pixels between,
    # all of which its box holds: off by at most half of those.
    over_seam = (torch.stack([tile_column, tile_row], dim=1) % 1 != 0) & is_tile[:, None]
    compare_middles(grid, positions, scale, slack=over_seam * (view % patch) / 2 * scale)

    interpolated = len(grid) < packed_length(name, height, width, most="anyres_max_999")
    assert interpolated or not bool(over_seam.any())
    if not interpolated:  # then the share of a patch that is not padding is the area of its box
        area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) / (patch * scale).prod(dim=1)
        torch.testing.assert_close(area[~grid.newline], share[~grid.newline], atol=1e-4, rtol=0)
    tile = tile_row.round() * (canvas[1] // view) + tile_column.round() + 1
    clear = ~grid.newline & ~(((tile_row % 1 - 0.5).abs() < 1e-3) | ((tile_column % 1 - 0.5).abs() < 1e-3))
    assert torch.equal(grid.view[clear], torch.where(is_tile, tile, 0)[clear].long())


@pytest.mark.parametrize("name", GEOMETRIES)
def test_several_images_have_a_base_view_padded_to_a_square(name):
    sizes = [(300, 200), (120, 500), (90, 90), (91, 40)]
    view, patch, _ = GEOMETRIES[name]
    for (height, width), positions in zip(sizes, seen(name, [coordinates(*size) for size in sizes]), strict=True):
        grid = image_grid(model(name).config, height, width, alone=False)
        assert len(grid) == (view // patch) ** 2 + 1 and not bool(grid.view.any())
        scale = torch.full((len(grid), 2), max(height, width) / view)
        compare_middles(grid, positions, scale)
        # The picture is padded before it is scaled, and the filter blends both: a hundredth of a patch.
        area = (grid.boxes[:-1, 2:] - grid.boxes[:-1, :2]).prod(dim=1) / (patch * scale[:-1]).prod(dim=1)
        torch.testing.assert_close(area, positions[:-1, 2], atol=0.01, rtol=0)


def test_media_layout_reads_the_outputs_of_the_real_processor():
    tiny = processor("tiny")
    sizes = [[(70, 50)], [(48, 48), (30, 90)], [(100, 100)]]
    texts = ["What <image>", "<image> is <image>", "<image> circle"]
    images = [[Image.new("RGB", (w, h)) for h, w in own] for own in sizes]
    outputs = tiny(text=texts, images=images, return_tensors="pt", padding=True)
    counts = (outputs["input_ids"] == tiny.image_token_id).sum(dim=1).tolist()
    layout = media_layout(ProcessedBatch(model("tiny").config, outputs, {"image": [[count] for count in counts]}))
    assert [sum(lengths) for lengths in layout.lengths["image"] if lengths is not None] == counts
    found = {key: (grid.height, grid.width) for key, grid in layout.grids.items()}
    assert found == {(row, i): size for row, own in enumerate(sizes) for i, size in enumerate(own)}
    assert [bool(grid.view.any()) for grid in layout.grids.values()] == [True, False, False, True]


@pytest.mark.parametrize(("name", "shortest", "longest", "pictures"), [("real", 100, 1500, 6), ("tiny", 40, 250, 20)])
def test_a_painted_square_changes_most_the_positions_whose_box_it_meets(name, shortest, longest, pictures):
    """Only the patch embeddings of the tower are compared: its attention would spread the change."""
    rng, misses, trials = random.Random(0), 0, 0
    for _ in range(pictures):
        height, width = rng.randint(shortest, longest), rng.randint(shortest, longest)
        grid = image_grid(model(name).config, height, width)
        image = torch.randint(0, 120, (3, height, width), dtype=torch.uint8)
        before = embedded(name, image)
        with_area = ((grid.boxes[:, 2:].floor() - grid.boxes[:, :2].ceil()) > 0).all(dim=1).nonzero()[:, 0].tolist()
        for token in rng.sample(with_area, 9):
            x0, y0 = grid.boxes[token, :2].ceil().int().tolist()
            x1, y1 = grid.boxes[token, 2:].floor().int().tolist()
            painted = image.clone()
            painted[:, y0:y1, x0:x1] += 130
            change = (embedded(name, painted) - before).norm(dim=1).nan_to_num(0)
            meets = (grid.boxes[:, :2] < torch.tensor([x1, y1])) & (grid.boxes[:, 2:] > torch.tensor([x0, y0]))
            of_view = (grid.view > 0) == (grid.view[token] > 0)
            trials += 1
            misses += not bool(meets[change.argmax()].all() and meets[(change * of_view).argmax()].all())
    assert trials == 9 * pictures and misses == 0


def embedded(name: str, image: Tensor) -> Tensor:
    outputs = processor(name).image_processor(image, return_tensors="pt")
    with torch.no_grad():
        features = model(name).vision_tower.embeddings(outputs["pixel_values"][0])
    return pack(name, features, (image.shape[-2], image.shape[-1]))
