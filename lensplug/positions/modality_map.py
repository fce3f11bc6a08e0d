"""The modality map: the modality of each position (text, image, video, audio, generated or pad).

A `ModalityMap` is created with the inputs and passed with the `ActivationCache` to every analysis.
It knows nothing of models: labels on positions, spans of one medium, and the geometry of each medium.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.geometry import AudioTimeline, ImageGrid, VideoGrid
from lensplug.validation.arguments import checked
from lensplug.validation.masks import Mask, as_mask

ModalityName = Literal["text", "image", "video", "audio", "generated", "pad"]
MediumName = Literal["image", "video", "audio"]
MODALITIES: tuple[ModalityName, ...] = get_args(ModalityName)
"""Every modality there is, in the order in which results list them."""

TEXT, PAD, GENERATED = (MODALITIES.index(name) for name in ("text", "pad", "generated"))


@dataclass(frozen=True)
class Span:
    """A run of positions of one modality and, where it is a medium, of one image, video or sound."""

    example: int
    modality: str
    start: int
    stop: int
    """One past the last position."""
    media_index: int | None
    """Which image (video, sound) of the example, counted from 0; None for text, and where it is not known."""


@dataclass(frozen=True)
class ModalityMap:
    """The modality of every position of a batch."""

    labels: Int[Tensor, "batch pos"]
    """Indices into `MODALITIES`."""
    special: Bool[Tensor, "batch pos"]
    """The tokenizer's special tokens; they count as text in `names`."""
    media_index: Int[Tensor, "batch pos"]
    """Which image (video, sound) of its example a position belongs to; -1 for none or not known."""
    grids: Mapping[tuple[int, int], ImageGrid] = field(default_factory=dict)
    """(example, media_index) -> the places of that image's tokens."""
    video_grids: Mapping[tuple[int, int], VideoGrid] = field(default_factory=dict)
    """(example, media_index) -> the frames and places of that video's tokens."""
    timelines: Mapping[tuple[int, int], AudioTimeline] = field(default_factory=dict)
    """(example, media_index) -> when the tokens of that sound are heard."""
    user_words: Bool[Tensor, "batch pos"] | None = None
    """The words of the user: no special tokens, nothing that the chat template adds. None where it is not known, as of
    `lens.encode`."""
    no_place: Mapping[str, str] = field(default_factory=dict)
    """Modality -> why its tokens have no place in their medium, where that is in the nature of the model (a resampler
    makes each of all of it)."""

    @classmethod
    @checked
    def build(
        cls,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Mask,
        *,
        placeholder_ids: Mapping[str, int],
        special_ids: Sequence[int] = (),
        media_lengths: Mapping[str, Sequence[Sequence[int] | None]] | None = None,
        grids: Mapping[tuple[int, int], ImageGrid] | None = None,
        video_grids: Mapping[tuple[int, int], VideoGrid] | None = None,
        timelines: Mapping[tuple[int, int], AudioTimeline] | None = None,
    ) -> ModalityMap:
        """Label every position from its token.

        Args:
            tokens: Token ids, placeholders expanded.
            attention_mask: 1 = attended; what is not attended is padding.
            placeholder_ids: Modality -> the id of its placeholder.
            special_ids: Ids of special tokens.
            media_lengths: Modality -> for each example, the number of positions of each medium, in order; None
                where one cannot be separated from the next. Without it, an example with one run of positions has one
                medium.
            grids: The geometry of the images, where the family is known.
            video_grids: That of the videos.
            timelines: That of the sounds.

        Raises:
            LensplugError: If the numbers of positions and of placeholders differ.
        """
        return cls.of_known_types(
            tokens,
            attention_mask,
            placeholder_ids=placeholder_ids,
            special_ids=special_ids,
            media_lengths=media_lengths or {},
            grids=grids or {},
            video_grids=video_grids or {},
            timelines=timelines or {},
        )

    @classmethod
    def of_known_types(
        cls,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Mask,
        *,
        placeholder_ids: Mapping[str, int],
        special_ids: Sequence[int],
        media_lengths: Mapping[str, Sequence[Sequence[int] | None]],
        grids: Mapping[tuple[int, int], ImageGrid],
        video_grids: Mapping[tuple[int, int], VideoGrid],
        timelines: Mapping[tuple[int, int], AudioTimeline],
        frames: Bool[Tensor, "batch pos"] | None = None,
    ) -> ModalityMap:
        """As `build`, from arguments that lensplug has made: only numbers of positions are checked.

        `frames` tells the placeholders of images that are frames of a video.
        """
        real = as_mask(attention_mask, tokens.shape, "attention_mask").to(tokens.device)
        labels = torch.full_like(tokens, TEXT)
        media_index = torch.full_like(tokens, -1)
        placeholders = {modality: (tokens == token) & real for modality, token in placeholder_ids.items()}
        if frames is not None:
            placeholders |= {"image": placeholders["image"] & ~frames, "video": frames}
        for modality, is_placeholder in placeholders.items():
            if modality not in MODALITIES:
                raise LensplugError(f"placeholder_ids has {modality!r}, expected some of {', '.join(MODALITIES)}.")
            labels.masked_fill_(is_placeholder, MODALITIES.index(modality))
            lengths = media_lengths.get(modality)
            for example, row in enumerate(is_placeholder):
                if lengths is None:
                    media_index[example, row] = 0 if _runs(row) == 1 else -1
                elif (counts := lengths[example]) is not None:
                    media_index[example].masked_scatter_(row, _which_medium(row, counts, modality).to(media_index))
        labels.masked_fill_(~real, PAD)
        special = torch.isin(tokens, torch.tensor(list(special_ids), device=tokens.device, dtype=tokens.dtype))
        special &= labels == TEXT
        modality_map = cls(labels, special, media_index, dict(grids), dict(video_grids), dict(timelines))
        geometries: tuple[tuple[MediumName, Mapping[tuple[int, int], Sized]], ...] = (
            ("image", modality_map.grids),
            ("video", modality_map.video_grids),
            ("audio", modality_map.timelines),
        )
        for modality, geometry in geometries:
            for (example, index), geometry_of_medium in geometry.items():
                is_medium = (labels[example] == MODALITIES.index(modality)) & (media_index[example] == index)
                positions = int(is_medium.sum())
                if positions != len(geometry_of_medium):
                    raise LensplugError(
                        f"{modality} {index} of example {example} has {positions} positions, its geometry"
                        f" {len(geometry_of_medium)}."
                    )
        return modality_map

    @property
    def names(self) -> tuple[ModalityName, ...]:
        """The modalities that occur, in the order text, image, video, audio, generated, pad."""
        return tuple(MODALITIES[index] for index in sorted(set(self.labels.flatten().tolist())))

    @property
    def position_names(self) -> list[list[ModalityName]]:
        """The modality of every position, as a word."""
        return [[MODALITIES[index] for index in row] for row in self.labels.tolist()]

    @checked
    def mask(self, modality: ModalityName) -> Bool[Tensor, "batch pos"]:
        """Where `modality` is; False everywhere if it does not occur."""
        return self.labels == MODALITIES.index(modality)

    @property
    def attention_mask(self) -> Int[Tensor, "batch pos"]:
        """1 where there is no padding."""
        return (self.labels != PAD).long()

    @property
    def spans(self) -> list[Span]:
        """Runs of positions of one modality and medium: disjoint, in order, covering every position."""
        spans = []
        for example, (labels, media) in enumerate(zip(self.labels.tolist(), self.media_index.tolist(), strict=True)):
            keys = list(zip(labels, media, strict=True))
            start = 0
            for pos in range(1, len(keys) + 1):
                if pos == len(keys) or keys[pos] != keys[start]:
                    label, medium = keys[start]
                    spans.append(Span(example, MODALITIES[label], start, pos, None if medium < 0 else medium))
                    start = pos
        return spans

    @checked
    def image_grid(self, media_index: int = 0, example: int = 0) -> ImageGrid | None:
        """The boxes of an image's tokens, in pixels.

        None for a family without geometry, where the size of the image or the settings of its processor are not known
        (`lens.encode` without `images=`), and where tokens have no place (`no_place` says why).

        Raises:
            LensplugError: If there is no such image.
        """
        self.image_positions(media_index, example)
        return self.grids.get((example, media_index))

    @checked
    def video_grid(self, media_index: int = 0, example: int = 0) -> VideoGrid | None:
        """The frames and boxes of a video's tokens; None as for `image_grid`.

        Raises:
            LensplugError: If there is no such video.
        """
        self.video_positions(media_index, example)
        return self.video_grids.get((example, media_index))

    @checked
    def audio_timeline(self, media_index: int = 0, example: int = 0) -> AudioTimeline | None:
        """When the tokens of a sound are heard, in seconds of the sound; None for a family without geometry.

        Raises:
            LensplugError: If there is no such sound.
        """
        self.audio_positions(media_index, example)
        return self.timelines.get((example, media_index))

    @checked
    def image_positions(self, media_index: int = 0, example: int = 0) -> Int[Tensor, " token"]:
        """The positions of one image, in the order of its grid.

        Raises:
            LensplugError: If there is no such image.
        """
        return self._positions("image", media_index, example)

    @checked
    def video_positions(self, media_index: int = 0, example: int = 0) -> Int[Tensor, " token"]:
        """The positions of one video, in the order of its grid.

        Raises:
            LensplugError: If there is no such video.
        """
        return self._positions("video", media_index, example)

    @checked
    def audio_positions(self, media_index: int = 0, example: int = 0) -> Int[Tensor, " token"]:
        """The positions of one sound, in the order of its timeline.

        Raises:
            LensplugError: If there is no such sound.
        """
        return self._positions("audio", media_index, example)

    def _positions(self, modality: MediumName, media_index: int, example: int) -> Int[Tensor, " token"]:
        batch = self.labels.shape[0]
        if not 0 <= example < batch:
            raise LensplugError(f"example {example} is asked for, the batch has {batch}.")
        is_medium = self.mask(modality)[example] & (self.media_index[example] == media_index)
        if not bool(is_medium.any()):
            existing = sorted(set(self.media_index[example][self.mask(modality)[example]].tolist()))
            if -1 in existing:
                raise LensplugError(
                    f"example {example} has {modality} positions, but it is not known which {modality} each belongs to:"
                    " use lens.prepare, or give lens.encode the media as well."
                )
            raise LensplugError(f"example {example} has no {modality} {media_index}: it has {existing}.")
        return is_medium.nonzero()[:, 0]

    def to(self, device: torch.device | str) -> ModalityMap:
        """The same map on another device."""
        labels, special, media_index = (t.to(device) for t in (self.labels, self.special, self.media_index))
        words = None if self.user_words is None else self.user_words.to(device)
        return replace(self, labels=labels, special=special, media_index=media_index, user_words=words)

    def with_answer_at(self, answer: Bool[Tensor, "batch pos"]) -> ModalityMap:
        """The same map where some words are an answer's: they are "generated"."""
        labels = self.labels.masked_fill(answer & (self.labels == TEXT), GENERATED)
        return replace(self, labels=labels, special=self.special & (labels == TEXT))

    def appended(self, generated: Bool[Tensor, "batch new"]) -> ModalityMap:
        """The map of prompt + answer: new positions are "generated", or "pad" where False."""
        labels, no_words = torch.where(generated, GENERATED, PAD).to(self.labels), torch.zeros_like(generated)
        return replace(
            self,
            labels=torch.cat([self.labels, labels], dim=1),
            special=torch.cat([self.special, no_words], dim=1),
            user_words=None if self.user_words is None else torch.cat([self.user_words, no_words], dim=1),
            media_index=torch.cat([self.media_index, torch.full_like(labels, -1)], dim=1),
        )


def _runs(row: Bool[Tensor, " pos"]) -> int:
    return int((row[1:] & ~row[:-1]).sum()) + int(row[0])


def _which_medium(row: Bool[Tensor, " pos"], lengths: Sequence[int], modality: str) -> Int[Tensor, " placeholder"]:
    """For each placeholder of an example, in order, the medium that it belongs to."""
    count = int(row.sum())
    if sum(lengths) != count:
        raise LensplugError(f"{count} {modality} placeholders for media of {list(lengths)} positions.")
    repeats = torch.tensor(list(lengths), device=row.device, dtype=torch.long)  # an example may have no medium
    return torch.repeat_interleave(repeats)
