"""What is blanked: cells, boxes and masks of a picture, spans of a sound, words of the prompt, each with a name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.analysis.regions.prompt_words import words_of
from lensplug.errors import LensplugError
from lensplug.geometry.image_regions import box_around, cells_of, pixels_of
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.interventions.places import Region, Seconds, Words
from lensplug.positions.tokens import find_text
from lensplug.validation.masks import Mask

Kind = Literal["image", "audio", "text"]
"""What the regions are parts of."""
Regions = tuple[int, int] | float | Literal["words"] | Mapping[str, Any] | Mask
"""Rows and columns of a grid over the picture; the length of each span of the sound in seconds; each word of the
prompt; or a list of boxes x0 y0 x1 y1, masks `[height width]`, spans (start_s, end_s), texts of the prompt, or of
`Region`, `Seconds`, `Words` of `lensplug.interventions`. As a dictionary each has a name."""
MOST = 4096
"""Maximum number of regions."""
HOW = (
    "rows and columns of a grid (4, 4), the seconds of each span 0.5, 'words', or a list of boxes (x0, y0, x1, y1),"
    " masks [height, width], spans (start_s, end_s) or texts of the prompt"
)


@dataclass(frozen=True)
class Places:
    """The regions of one example; what does not belong to their kind is None."""

    kind: Kind
    names: tuple[str, ...]
    masks: Bool[Tensor, "region height width"] | None = None
    """The pixels of each."""
    boxes: Float[Tensor, "region 4"] | None = None
    """x0 y0 x1 y1 around each, in pixels of the picture."""
    spans_s: Float[Tensor, "region 2"] | None = None
    """Start and end of each, in seconds."""
    positions: Bool[Tensor, "region pos"] | None = None
    """The positions of each, for words."""
    is_grid: bool = False
    """Whether they are the cells of a grid."""

    def __len__(self) -> int:
        """The number of regions."""
        return len(self.names)


def places_of(regions: Regions, inputs: MultimodalInput, media_index: int, tokenizer: Any) -> Places:
    """The regions of one example.

    Args:
        regions: As the user gave them.
        inputs: One example.
        media_index: Which picture or sound, for regions of one.
        tokenizer: Finds texts in the prompt.

    Raises:
        LensplugError: If they are none of these, there are none or too many, or one is not in its medium.
    """
    if isinstance(regions, str):
        return _texts(words_of(tokenizer, inputs), inputs)
    if isinstance(regions, float | int):
        return _equal_spans(float(regions), inputs, media_index)
    if isinstance(regions, tuple) and len(regions) == 2 and all(isinstance(count, int) for count in regions):
        image = _image(inputs, media_index)
        rows, columns = regions
        _refuse_many(rows * columns)
        boxes = cells_of(rows, columns, image.height, image.width)
        names = [f"row {row}, column {column}" for row in range(rows) for column in range(columns)]
        return replace(_boxes(boxes.tolist(), names, inputs, media_index), is_grid=True)
    names = [str(name) for name in regions] if isinstance(regions, Mapping) else []
    each = regions.values() if isinstance(regions, Mapping) else regions
    entries = [_plain(entry, inputs, media_index) for entry in each]
    _refuse_many(len(entries))
    if all(isinstance(entry, str) for entry in entries):
        found = [
            (name, _positions(entry, inputs, tokenizer)) for name, entry in zip(names or entries, entries, strict=True)
        ]
        return _texts(found, inputs)
    shapes = {_shape(entry) for entry in entries}
    if shapes == {(2,)}:
        spans = [(float(start), float(end)) for start, end in entries]
        return _spans(spans, names, inputs, media_index)
    if all(shape == (4,) or len(shape) == 2 for shape in shapes):
        called = names or [
            f"{'box' if _shape(entry) == (4,) else 'mask'} {index}" for index, entry in enumerate(entries)
        ]
        return _boxes(entries, called, inputs, media_index)
    hint = "; for a single region give a list of it" if shapes == {()} else ""
    raise LensplugError(f"regions have entries of the shapes {sorted(shapes)}, expected {HOW}{hint}.")


def _plain(entry: Any, inputs: MultimodalInput, media_index: int) -> Any:
    """A place of `lensplug.interventions` as a box, a span or a text; anything else as it is."""
    if isinstance(entry, Words):
        return entry.text
    if not isinstance(entry, Region | Seconds):
        return entry
    index = entry.image if isinstance(entry, Region) else entry.sound
    if index != media_index:
        raise LensplugError(f"{entry} is of medium {index}, and media_index is {media_index}: give both the same.")
    if isinstance(entry, Seconds):
        return (entry.start, entry.end)
    image = _image(inputs, media_index)
    return entry.in_pixels(image.width, image.height)


def _shape(entry: Any) -> tuple[int, ...]:
    if isinstance(entry, Tensor):
        return tuple(entry.shape)
    try:
        array = np.asarray(entry)
    except ValueError as error:
        raise LensplugError(f"a region is a nested list whose rows differ in length, expected {HOW}.") from error
    if array.dtype.kind not in "fiub":
        raise LensplugError(f"a region is a {type(entry).__name__}, expected {HOW}.")
    return array.shape


def _refuse_many(count: int) -> None:
    if not 1 <= count <= MOST:
        raise LensplugError(f"there are {count} regions, expected 1 to {MOST}: {HOW}.")


def _image(inputs: MultimodalInput, media_index: int) -> Any:
    images = inputs.images[0] if inputs.images else ()
    return _medium(images, "image", "image", inputs, media_index)


def _medium(media: Sequence[Any], kind: str, word: str, inputs: MultimodalInput, media_index: int) -> Any:
    if kind not in inputs.modality.names:
        there = ", ".join(inputs.modality.names)
        video = (
            ""
            if "video" not in inputs.modality.names
            else (
                " Regions of a video are not blanked: give its frames as images=[...], or cut what is seen of some"
                " of its positions, lens.intervene(Knockout(positions))."
            )
        )
        raise LensplugError(f"regions are of a {word}, and these inputs have none: they have {there}.{video}")
    if not media:
        name = {"image": "images", "audio": "audio"}[kind]
        raise LensplugError(
            f"the {word} of these inputs is not known, so nothing of it can be blanked: lens.prepare keeps it, to"
            f" lens.encode give {name}=[...]."
        )
    if not 0 <= media_index < len(media):
        raise LensplugError(f"media_index is {media_index}, there are {len(media)} of {word}, counted from 0.")
    return media[media_index]


def _boxes(regions: Sequence[Any], names: Sequence[str], inputs: MultimodalInput, media_index: int) -> Places:
    image = _image(inputs, media_index)
    masks = torch.stack([pixels_of(region, image.height, image.width) for region in regions])
    return Places("image", tuple(names), masks=masks, boxes=torch.stack([box_around(mask) for mask in masks]))


def _equal_spans(seconds: float, inputs: MultimodalInput, media_index: int) -> Places:
    duration = _sound(inputs, media_index).duration_s
    if not (0 < seconds and math.isfinite(seconds)):
        raise LensplugError(f"regions is {seconds:g}: the length of each span of the sound is above 0 seconds.")
    count = max(1, math.ceil(duration / seconds - 1e-6))
    _refuse_many(count)
    edges = [min(index * seconds, duration) for index in range(count)] + [duration]
    return _spans(list(zip(edges, edges[1:], strict=False)), [], inputs, media_index)


def _sound(inputs: MultimodalInput, media_index: int) -> Any:
    return _medium(inputs.audio[0] if inputs.audio else (), "audio", "sound", inputs, media_index)


def _spans(
    spans: Sequence[tuple[float, float]], names: Sequence[str], inputs: MultimodalInput, media_index: int
) -> Places:
    sound = _sound(inputs, media_index)
    for start, end in spans:
        if not (0 <= start < end and round(start * sound.sampling_rate) < len(sound.waveform)):
            raise LensplugError(
                f"the span from {start:g} to {end:g} s is no part of the sound of {sound.duration_s:.2f} s: expected"
                " 0 <= start < end."
            )
    called = names or [f"{start:.2f} to {end:.2f} s" for start, end in spans]
    return Places("audio", tuple(called), spans_s=torch.tensor(spans))


def _texts(found: Sequence[tuple[str, Sequence[int]]], inputs: MultimodalInput) -> Places:
    _refuse_many(len(found))
    positions = torch.zeros(len(found), inputs.tokens.shape[1], dtype=torch.bool)
    for region, (_, where) in enumerate(found):
        positions[region, list(where)] = True
    return Places("text", tuple(name for name, _ in found), positions=positions)


def _positions(text: str, inputs: MultimodalInput, tokenizer: Any) -> range:
    where = find_text(text, inputs.str_tokens[0], inputs.tokens[0].tolist(), tokenizer)
    if where is None:
        raise LensplugError(f"the text {text!r} is not in the prompt: its tokens are in inputs.str_tokens[0].")
    labels = inputs.modality.mask("text")[0]
    if not bool(labels[list(where)].all()):
        raise LensplugError(f"the text {text!r} is not in the words of the prompt, but in its answer or its media.")
    return where
