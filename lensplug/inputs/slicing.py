"""Some examples of an input, or its first positions: what indexing it does.

Tools of TransformerLens take tokens apart, `tokens[2:3]`, `tokens[:, :128]`, `tokens.expand(8, -1)`, and run the
pieces. A `MultimodalInput` given in place of tokens is taken apart alike, and each piece knows what its positions are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.patches.decoder_inputs import depend_on_others, of_examples, of_positions
from lensplug.positions.modality_map import MODALITIES, TEXT, MediumName, ModalityMap


@runtime_checkable
class Sliceable(Protocol):
    """The fields of a `MultimodalInput` that an index acts on; it imports this module, not this module it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __len__(self) -> int:
        """The number of examples."""

    @property
    def embeds(self) -> Float[Tensor, "batch pos d_model"]:
        """Merged embeddings."""

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """Token ids."""

    @property
    def attention_mask(self) -> Int[Tensor, "batch pos"]:
        """1 = attended."""

    @property
    def modality(self) -> ModalityMap:
        """Which position is what."""

    @property
    def str_tokens(self) -> list[list[str]]:
        """The text of every token."""

    @property
    def decoder_inputs(self) -> Mapping[str, Any]:
        """Additional decoder inputs."""

    @property
    def images(self) -> tuple[tuple[Any, ...], ...]:
        """Of each example."""

    @property
    def model_inputs(self) -> Mapping[str, Any]:
        """Of the full model."""

    @property
    def videos(self) -> tuple[tuple[Any, ...], ...]:
        """Of each example."""

    @property
    def audio(self) -> tuple[tuple[Any, ...], ...]:
        """Of each example."""


InputsT = TypeVar("InputsT", bound=Sliceable)


def indexed(inputs: InputsT, key: Any) -> InputsT | Int[Tensor, " pos"]:
    """What `inputs[key]` is.

    Args:
        inputs: From `prepare` or `encode`.
        key: A number: the token ids of that example, as of tokens. A slice, a list or a tensor of numbers (or of True
            and False): the input of these examples. Behind a comma, `:stop`: of their first positions.

    Raises:
        LensplugError: If positions from the middle are asked for, or there is no such example.
    """
    positions = slice(None)
    if isinstance(key, tuple):
        if len(key) != 2 or not isinstance(key[1], slice):
            raise _no_such_index(key)
        key, positions = key
    if isinstance(key, int):
        return inputs.tokens[key, positions]
    if (positions.start or 0) != 0 or positions.step not in (None, 1):
        raise _no_such_index((key, positions))
    try:
        index = torch.arange(len(inputs))[torch.as_tensor(key).cpu() if not isinstance(key, slice) else key]
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise _no_such_index(key) from error
    chosen = inputs if key == slice(None) else examples(inputs, index.reshape(-1))
    return chosen if positions.stop is None else first_positions(chosen, positions.stop)


def examples(inputs: InputsT, index: Int[Tensor, " example"]) -> InputsT:
    """The input of these examples, in this order; one may be there several times."""
    examples_kept = index.to(inputs.tokens.device)
    chosen = index.tolist()
    return replace(
        inputs,
        embeds=inputs.embeds[examples_kept],
        tokens=inputs.tokens[examples_kept],
        attention_mask=inputs.attention_mask[examples_kept],
        modality=_labels_of(inputs.modality, examples_kept),
        str_tokens=[inputs.str_tokens[example] for example in chosen],
        # Features of media cannot be assigned to examples: those of all, or none.
        model_inputs=inputs.model_inputs if chosen == list(range(len(inputs))) else {},
        decoder_inputs={name: of_examples(name, value, examples_kept) for name, value in inputs.decoder_inputs.items()},
        images=tuple(inputs.images[example] for example in chosen) if inputs.images else (),
        videos=tuple(inputs.videos[example] for example in chosen) if inputs.videos else (),
        audio=tuple(inputs.audio[example] for example in chosen) if inputs.audio else (),
    )


def first_positions(inputs: InputsT, stop: int) -> InputsT:
    """The first positions of every example: what a causal model computes there does not change.

    Raises:
        LensplugError: If an example has nothing but padding there, or a medium that sees itself whole would be cut.
    """
    length = inputs.tokens.shape[1]
    stop = len(range(length)[:stop])
    if stop == length:
        return inputs
    if not bool(inputs.attention_mask[:, :stop].any(dim=1).all()):
        raise LensplugError(f"the first {stop} positions of an example are nothing but padding: take more.")
    labels = inputs.modality.labels
    cut = (labels[:, stop - 1] == labels[:, stop]) & (labels[:, stop] != TEXT)
    if bool(cut.any()) and depend_on_others(inputs.decoder_inputs):
        kind = MODALITIES[int(labels[:, stop][cut][0])]
        raise LensplugError(
            f"position {stop} is in the midst of a {kind}, which sees itself whole in this model: cut before or behind."
        )
    return replace(
        inputs,
        embeds=inputs.embeds[:, :stop],
        tokens=inputs.tokens[:, :stop],
        attention_mask=inputs.attention_mask[:, :stop],
        modality=_first_labels(inputs.modality, stop),
        str_tokens=[row[:stop] for row in inputs.str_tokens],
        model_inputs={},
        decoder_inputs={name: of_positions(name, value, slice(stop)) for name, value in inputs.decoder_inputs.items()},
    )


def _labels_of(modality: ModalityMap, examples_kept: Int[Tensor, " example"]) -> ModalityMap:
    def again(geometry: Mapping[tuple[int, int], Any]) -> dict[tuple[int, int], Any]:
        return {
            (new_example, medium): geometry_of_medium
            for new_example, old_example in enumerate(examples_kept.tolist())
            for (example, medium), geometry_of_medium in geometry.items()
            if example == old_example
        }

    return ModalityMap(
        modality.labels[examples_kept], modality.special[examples_kept], modality.media_index[examples_kept],
        again(modality.grids), again(modality.video_grids), again(modality.timelines),
        None if modality.user_words is None else modality.user_words[examples_kept],
        modality.no_place,
    )  # fmt: skip


def _first_labels(modality: ModalityMap, stop: int) -> ModalityMap:
    """Geometry is kept for complete media only."""

    def whole(geometry: Mapping[tuple[int, int], Any], kind: MediumName) -> dict[tuple[int, int], Any]:
        is_beyond = modality.mask(kind)[:, stop:]
        return {
            (example, medium): geometry_of_medium
            for (example, medium), geometry_of_medium in geometry.items()
            if not bool((is_beyond[example] & (modality.media_index[example, stop:] == medium)).any())
        }

    return ModalityMap(
        modality.labels[:, :stop], modality.special[:, :stop], modality.media_index[:, :stop],
        whole(modality.grids, "image"), whole(modality.video_grids, "video"), whole(modality.timelines, "audio"),
        None if modality.user_words is None else modality.user_words[:, :stop],
        modality.no_place,
    )  # fmt: skip


def _no_such_index(key: Any) -> LensplugError:
    return LensplugError(
        f"inputs[{key}] is not known: inputs[0] are the token ids of an example, inputs[0:1] or inputs[[0, 2]] the"
        " input of examples, inputs[:, :128] of first positions; lens.without(inputs, positions) leaves others out."
    )
