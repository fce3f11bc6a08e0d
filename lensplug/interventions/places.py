"""Where an edit acts, as users say it, and the positions of a run that it means.

A place is a name ("image", "text", "media", "question", "last", "all"), positions (negative ones count from the last
that is not padding), a mask of True and False, a `Region` of an image, `Seconds` of a sound, or `Words` of the prompt.
It is resolved for each run, so that an edit can be made once and used on many inputs. "question" is what the user
wrote: text without special tokens, without what the chat template adds, and without the last position.

While an answer is generated, its tokens come behind the prompt. "all" and "generated" mean them too; "last" is, at each
step, the position from which the next token is predicted. Every other place is of the prompt alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.positions.by_modality import NAMES, PositionsName, mask_at, named
from lensplug.positions.indices import Positions, resolve_positions
from lensplug.positions.modality_map import ModalityMap
from lensplug.positions.tokens import find_text
from lensplug.validation.arguments import admitted, described
from lensplug.validation.masks import Mask

Number = float | int


@dataclass(frozen=True)
class Region:
    """The positions of an image whose patches lie in a box, (x0, y0, x1, y1) in pixels of the original image.

    In every view (the whole image and its tiles), so that nothing of the region is left.
    """

    box: tuple[Number, Number, Number, Number]
    image: int = 0
    """Which image of each example."""
    at_least: Number = 0.0
    """The share of a patch that must be inside; a patch counts above it."""
    relative: bool = False
    """Whether the box is in shares of the image's width and height, 0 to 1, in place of pixels."""

    def __post_init__(self) -> None:
        """Raise if it is no box."""
        if not isinstance(self.box, tuple | list) or len(self.box) != 4:
            raise LensplugError(f"Region has the box {self.box!r}, expected four numbers (x0, y0, x1, y1).")
        x0, y0, x1, y1 = (admitted(edge, float, "an edge of the box") for edge in self.box)
        if not (x0 < x1 and y0 < y1):
            raise LensplugError(f"Region({self.box}) is empty, expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1.")

    def in_pixels(self, width: int, height: int) -> tuple[Number, Number, Number, Number]:
        """The box in pixels of an image of this size."""
        x0, y0, x1, y1 = self.box
        return (x0 * width, y0 * height, x1 * width, y1 * height) if self.relative else self.box


@dataclass(frozen=True)
class Seconds:
    """The positions of a sound that hear a part of this time, in seconds of the original recording."""

    start: Number
    end: Number
    sound: int = 0
    """Which sound of each example."""

    def __post_init__(self) -> None:
        """Raise if it is no time."""
        if not admitted(self.start, float, "start") < admitted(self.end, float, "end"):
            raise LensplugError(f"Seconds({self.start}, {self.end}) is empty: the end comes behind the start.")


@dataclass(frozen=True)
class Words:
    """The positions of a text in the prompt (its last occurrence); white space does not count."""

    text: str

    def __post_init__(self) -> None:
        """Raise if it is no text."""
        admitted(self.text, str, "Words")


Place = (
    PositionsName
    | Literal["question", "last", "all"]
    | Region
    | Seconds
    | Words
    | tuple[PositionsName, ...]
    | Positions
    | Mask
)
"""See the module."""
SPECIAL = ("question", "last", "all")
"""Names that are no modality's."""
PLACE_NAMES = (*NAMES, *SPECIAL)


@dataclass(frozen=True)
class Placed:
    """The positions of a run that a place means."""

    mask: Bool[Tensor, "example pos"]
    later: bool
    """Whether the tokens that are generated behind the prompt are among them."""

    def now(self, past: int, length: int) -> Bool[Tensor, "example length"]:
        """For the positions of one pass."""
        return torch.nn.functional.pad(self.mask, (0, max(0, past + length - self.mask.shape[1])), value=self.later)[
            :, past : past + length
        ]


@dataclass(frozen=True)
class RunPositions:
    """The positions of one run, and what is known of them."""

    attended: Bool[Tensor, "example pos"]
    modality: ModalityMap | None
    str_tokens: list[list[str]] | None
    generating: bool = False
    """Whether tokens are generated behind them."""

    @classmethod
    def of(cls, run_input: Any, attention_mask: Any = None, *, generating: bool = False) -> RunPositions:
        """Of what a model is run on: inputs, an edited copy of them, embeddings or tokens.

        Raises:
            LensplugError: If it is a text.
        """
        if isinstance(run_input, str | list):
            raise LensplugError("interventions act on positions, and a text has none yet: give lens.prepare(...).")
        attended = getattr(run_input, "attention_mask", None) if attention_mask is None else attention_mask
        shape = getattr(run_input, "embeds", run_input).shape[:2]
        if attended is None:
            attended = torch.ones(shape, dtype=torch.bool, device=getattr(run_input, "device", None))
        like = getattr(run_input, "like", None)  # an edited copy knows whose positions it has
        known = run_input if like is None else like()
        return cls(
            torch.as_tensor(attended).bool(),
            getattr(known, "modality", None),
            getattr(known, "str_tokens", None),
            generating,
        )

    def place(self, place: Place, name: str) -> Placed:
        """The positions that a place means.

        Args:
            place: As users say it.
            name: What it is called in an error.

        Raises:
            LensplugError: If it does not exist in this run, or in one of its examples.
        """
        placed = self._placed(place, name)
        mask = placed.mask.to(self.attended.device) & self.attended
        empty = ~mask.any(dim=1)
        later = placed.later and self.generating
        if bool(empty.any()) and not later:
            example = int(empty.nonzero()[0])
            has = "" if self.modality is None else f" It has {', '.join(self.modality.names)}."
            raise LensplugError(
                f"{name}={in_words(place)} means no position of example {example}: the edit would change nothing.{has}"
            )
        return Placed(mask, later)

    def _placed(self, place: Any, name: str) -> Placed:
        if isinstance(place, Region | Seconds | Words):
            return Placed(self._found(place, name), later=False)
        if isinstance(place, str) and place == "all":
            return Placed(self.attended, later=True)
        if isinstance(place, str) and place == "last":
            return Placed(self._last(name), later=True)
        if isinstance(place, str) and place == "question":
            return Placed(self._question(name), later=False)
        if (names := named(place)) is not None:
            if unknown := [kind for kind in names if kind not in PLACE_NAMES]:
                raise LensplugError(
                    f"{name} is {unknown[0]!r}, expected one of {', '.join(map(repr, PLACE_NAMES))}, positions, a mask,"
                    " or a Region, Seconds or Words."
                )
            special = [self._placed(kind, name) for kind in names if kind in SPECIAL]
            masks = [placed.mask for placed in special]
            if kinds := [kind for kind in names if kind not in SPECIAL]:
                shape = self.attended.shape
                masks.append(mask_at(cast(Any, kinds), self._modality(name), shape, name, against="the run is"))
            later = "generated" in names or any(placed.later for placed in special)
            return Placed(torch.stack([mask.to(self.attended.device) for mask in masks]).any(dim=0), later=later)
        return Placed(self._numbered(place, name), later=False)

    def _last(self, name: str) -> Bool[Tensor, "example pos"]:
        last = resolve_positions(-1, self.attended.long(), name=name)
        return torch.zeros_like(self.attended).scatter(1, last, value=True)

    def _question(self, name: str) -> Bool[Tensor, "example pos"]:
        words = self._modality(name).user_words
        if words is None:
            raise LensplugError(
                f"{name} is 'question', and which words of this prompt are the user's is not known: run inputs of"
                " lens.prepare, or give Words('What is it?'), positions or a mask."
            )
        return words.to(self.attended.device) & ~self._last(name)

    def _numbered(self, place: Any, name: str) -> Bool[Tensor, "example pos"]:
        """Positions or a mask, as numbers."""
        try:
            numbers = torch.as_tensor(place, device=self.attended.device)
        except (TypeError, ValueError, RuntimeError):
            raise LensplugError(
                f"{name} is {described(place)}, expected one of {', '.join(map(repr, PLACE_NAMES))}, positions, a mask,"
                " or a Region, Seconds or Words."
            ) from None
        if numbers.dtype == torch.bool:
            if tuple(numbers.shape) not in ((1, self.attended.shape[1]), tuple(self.attended.shape)):
                raise LensplugError(
                    f"{name} is a mask {list(numbers.shape)}, the run has the shape {list(self.attended.shape)}."
                )
            return numbers.expand(len(self.attended), -1)
        looks_like_mask = numbers.shape == self.attended.shape and numbers.numel() > 2
        if looks_like_mask and bool(((numbers == 0) | (numbers == 1)).all()):
            raise LensplugError(
                f"{name} is zeros and ones in the shape of the run: for a mask give {name}.bool(); positions 0 and 1"
                " are [0, 1]."
            )
        index = resolve_positions(numbers, self.attended.long(), name=name)
        return torch.zeros_like(self.attended).scatter(1, index, value=True)

    def _found(self, place: Region | Seconds | Words, name: str) -> Bool[Tensor, "example pos"]:
        mask = torch.zeros_like(self.attended)
        for example in range(len(mask)):
            mask[example, self._positions_in(place, example, name).to(mask.device)] = True
        return mask

    def _positions_in(self, place: Region | Seconds | Words, example: int, name: str) -> Int[Tensor, " position"]:
        if isinstance(place, Words):
            if self.str_tokens is None:
                raise LensplugError(f"{name}={place}: the words of this run are not known: run inputs of lens.prepare.")
            found = find_text(place.text, self.str_tokens[example])
            return torch.tensor([] if found is None else list(found), dtype=torch.long)
        modality = self._modality(name)
        if isinstance(place, Region):
            grid = modality.image_grid(place.image, example)
            if grid is None:
                raise LensplugError(f"{name}={place}: where this image's positions lie is not known: give a mask.")
            positions = modality.image_positions(place.image, example)
            box = place.in_pixels(grid.width, grid.height)
            return positions[(grid.overlap(box) > place.at_least).to(positions.device)]
        timeline = modality.audio_timeline(place.sound, example)
        if timeline is None:
            raise LensplugError(f"{name}={place}: when this sound's positions are heard is not known: give a mask.")
        positions = modality.audio_positions(place.sound, example)
        heard = (timeline.start_s < place.end) & (timeline.end_s > place.start)
        return positions[heard.to(positions.device)]

    def _modality(self, name: str) -> ModalityMap:
        if self.modality is None:
            raise LensplugError(
                f"{name} is a modality or a part of a medium, and nothing says which position of this run is what: run"
                " inputs of lens.prepare, or give positions or a mask."
            )
        return self.modality


def in_words(place: Any) -> str:
    """A place as text, for provenance and errors."""
    place = torch.from_numpy(place) if isinstance(place, np.ndarray) else place
    if isinstance(place, Tensor):
        numbers = place.nonzero().tolist() if place.dtype == torch.bool else place.tolist()
        text = str(numbers)
        return text if len(text) <= 200 else f"{described(place)} {sha256(text.encode()).hexdigest()[:8]}"
    text = repr(place)
    return text if len(text) <= 200 else f"{described(place)} {sha256(text.encode()).hexdigest()[:8]}"
