"""What some models give their decoder besides embeddings and padding: how each goes along with what is done to inputs.

Not a patch, but shared by inputs and patches. A model may give its core positions of three parts (Qwen2-VL), masks of
its own (Gemma 3), features that are added between blocks (Qwen3-VL). Examples are chosen from each, positions are cut
from it, and behind it an answer goes on, by an axis here and a rule there: `KINDS` says them, once for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

NAMES_OF_PARTS = ("temporal", "height", "width")
"""The parts of a position of which there are three; a fourth, before them, is that of the text alone."""


@dataclass(frozen=True)
class Kind:
    """Which axes of an additional input are what, counted from the last."""

    example: int
    positions: tuple[int, ...]
    of_one_position: bool = True
    """Whether what it says of a position does not depend on which others there are, so that it may be cut anywhere."""


KINDS = {
    "position_ids": Kind(example=-2, positions=(-1,)),
    "attention_mask": Kind(example=-4, positions=(-2, -1), of_one_position=False),
    "deepstack": Kind(example=-3, positions=(-2,)),
    "per_layer_inputs": Kind(example=-4, positions=(-3,)),
}
"""Name in `decoder_inputs` -> what it is like.

"deepstack", `[layer batch pos d_model]`: what the first layers add to the stream at the end of each, zero where there
is no image; transformers gives it as a mask and a list of features. "per_layer_inputs", `[batch pos layer d]`: what
Gemma 4 looks up for each word, and each layer reads in its own way; at positions of media that of the padding word."""


def of_examples(name: str, value: Any, examples: Int[Tensor, " chosen"]) -> Any:
    """One additional input for these examples, in this order; one may be there several times."""
    if isinstance(value, Mapping):  # one mask for each kind of layer
        return {kind: of_examples(name, mask, examples) for kind, mask in value.items()}
    if not isinstance(value, Tensor):
        return value
    axis = value.ndim + KINDS[name].example
    if value.shape[axis] == 1:  # of one example, or the same for all: a view of it for each
        return value.expand([len(examples) if dimension == axis else -1 for dimension in range(value.ndim)])
    return value.index_select(axis, examples.to(value.device))


def of_positions(name: str, value: Any, positions: slice) -> Any:
    """One additional input for these positions."""
    if isinstance(value, Mapping):
        return {kind: of_positions(name, mask, positions) for kind, mask in value.items()}
    if not isinstance(value, Tensor):
        return value
    kept = [slice(None)] * value.ndim
    for axis in KINDS[name].positions:
        kept[axis] = positions
    return value[tuple(kept)]


def on_device(decoder_inputs: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """All of them on a device."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {kind: moved(mask) for kind, mask in value.items()}
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: moved(value) for name, value in decoder_inputs.items()}


def of_an_answer(decoder_inputs: Mapping[str, Any], prompt_length: int, past: int) -> dict[str, Any]:
    """What a step of an answer is given: words go on behind the largest position; all else is of the prompt alone.

    Args:
        decoder_inputs: Of the prompt.
        prompt_length: How many positions it has.
        past: How many there are before this step, the prompt's included.
    """
    positions = decoder_inputs.get("position_ids")
    if positions is None:
        return {}
    parts = positions[-len(NAMES_OF_PARTS) :]
    largest = positions.amax(dim=-1) if positions.ndim == 2 else parts.amax(dim=(0, 2))
    following = (largest + 1 + past - prompt_length)[:, None]
    return {"position_ids": following if positions.ndim == 2 else following.expand(len(parts), -1, 1)}


def of_new_words(decoder: Any, decoder_inputs: Mapping[str, Any], tokens: Int[Tensor, "example pos"]) -> dict[str, Any]:
    """What new words of an answer are given that depends on which words they are.

    Args:
        decoder: Hugging Face's.
        decoder_inputs: Of the prompt.
        tokens: The new words.
    """
    if decoder_inputs.get("per_layer_inputs") is None:
        return {}
    return {"per_layer_inputs": decoder.get_per_layer_inputs(tokens, None)}


def of_replaced(
    decoder_inputs: Mapping[str, Any], replaced: Bool[Tensor, "example pos"], words: Bool[Tensor, "example pos"]
) -> dict[str, Any]:
    """All of them where the embeddings of some positions are replaced: what else the model would see of them goes.

    Features that layers add are the same medium's as the embedding. Per-layer inputs say which word there was; at
    positions of media they say nothing, and stay.

    Args:
        decoder_inputs: Of the inputs.
        replaced: Where embeddings are replaced.
        words: Where there are words.
    """
    kept = dict(decoder_inputs)
    if (features := kept.get("deepstack")) is not None:
        kept["deepstack"] = features.masked_fill(replaced.to(features.device)[..., None], 0)
    if (of_words := kept.get("per_layer_inputs")) is not None:
        gone = (replaced & words.to(replaced.device)).to(of_words.device)
        kept["per_layer_inputs"] = of_words.masked_fill(gone[..., None, None], 0)
    return kept


def depend_on_others(decoder_inputs: Mapping[str, Any]) -> bool:
    """Whether what a position is given depends on later ones, so that first positions cannot be run by themselves.

    By name alone: no mask where a model gives one means that everything is seen.
    """
    return not all(KINDS[name].of_one_position for name in decoder_inputs)
