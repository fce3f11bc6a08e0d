"""The same prompt with a corrupt medium: what `causal_tracing` starts from, and puts clean states back into.

Noise goes onto the embeddings. All else happens to the medium itself, before the processor, so that every view of it
shows the same; its size and length stay, so that no position moves. Everything but the medium's embeddings, and what
layers are given of it, is that of the clean prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from lensplug.analysis.protocols import Lens
from lensplug.errors import LensplugError
from lensplug.inputs.aligned_positions import counterparts
from lensplug.inputs.edited_inputs import in_place
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.media import listed, load_image, load_sound, load_video
from lensplug.media.blank import Blank, blank_image, blank_video, muffled, silence
from lensplug.media.fitted import fitted_image, fitted_sound, fitted_video
from lensplug.positions.by_modality import MEDIA
from lensplug.positions.modality_map import MediumName
from lensplug.validation.arguments import at_least

Corruption = Literal["noise", "blank", "mean", "blur", "another"]
"""Noise on the embeddings; or, in the medium's place: grey or silence, a picture's mean colour, a blurred picture or
muffled sound, another picture or sound."""
BLANKS: dict[Corruption, Blank] = {"blank": "grey", "mean": "mean", "blur": "blur"}
IN_WORDS = {"blank": "a grey or silent blank", "mean": "its mean colour", "blur": "a blur", "another": "another one"}
FIELDS = {"image": "images", "video": "videos", "audio": "audio"}
LOAD: dict[str, Callable[[Any], Any]] = {"image": load_image, "video": load_video, "audio": load_sound}
FIT: dict[str, Callable[[Any, Any], Any]] = {"image": fitted_image, "video": fitted_video, "audio": fitted_sound}
OTHER = 0.05
"""Two embeddings differ by more than rounding, or by the batch that they were made in, from this fraction on."""


@dataclass(frozen=True)
class Medium:
    """What is corrupted: all media of a kind, or one of them."""

    name: MediumName
    index: int | None
    positions: Bool[Tensor, "batch pos"]

    def __str__(self) -> str:
        """What it is, for a title."""
        return self.name if self.index is None else f"{self.name} {self.index}"


def medium_of(inputs: MultimodalInput, name: MediumName | None, index: int | None) -> Medium:
    """What is to be corrupted.

    Raises:
        LensplugError: If it is not said which of several kinds, or an example has no such medium.
    """
    there = [kind for kind in MEDIA if kind in inputs.modality.names]
    if name is None and len(there) != 1:
        raise LensplugError(f"the inputs have {' and '.join(there) or 'no medium'}: say which is corrupted, medium=.")
    chosen = there[0] if name is None else name
    positions = inputs.modality.mask(chosen)
    if index is not None:
        at_least(0, media_index=index)
        positions = positions & (inputs.modality.media_index == index)
    medium = Medium(chosen, index, positions)
    lacking = ~positions.any(dim=1)
    if bool(lacking.any()):
        raise LensplugError(f"example {int(lacking.nonzero()[0])} has no {medium} to corrupt.")
    return medium


def noisy(inputs: MultimodalInput, medium: Medium, noise: float, seed: int) -> MultimodalInput:
    """The same inputs with noise on the embeddings of a medium."""
    embeds, at = inputs.embeds.clone(), medium.positions.to(inputs.embeds.device)
    generator = torch.Generator().manual_seed(seed)
    for example, mask in enumerate(at):
        own = embeds[example, mask].float()
        drawn = torch.randn(own.shape, generator=generator).to(own.device)
        embeds[example, mask] = (own + noise * own.std() * drawn).to(embeds.dtype)
    return replace(inputs, embeds=embeds, decoder_inputs=in_place(inputs, embeds).decoder_inputs)


def changed(
    lens: Lens, inputs: MultimodalInput, medium: Medium, corruption: Corruption, another: Any
) -> MultimodalInput:
    """The same inputs with something else in place of a medium.

    Raises:
        LensplugError: If the medium is not known, cannot be changed so, or is what it was.
    """
    if isinstance(another, MultimodalInput):
        made = _as_prepared(inputs, another, medium)
    else:
        made = _processed(lens, inputs, medium, corruption, another)
    at = medium.positions.to(inputs.embeds.device)
    if torch.equal(made.embeds[at], inputs.embeds[at]):
        raise LensplugError(f"the corrupt {medium} is what the clean one is: nothing is corrupted by {corruption!r}.")
    return made


def _processed(
    lens: Lens, inputs: MultimodalInput, medium: Medium, corruption: Corruption, another: Any
) -> MultimodalInput:
    if len(inputs) != 1:
        alike = " (or prepared inputs as another=)" if corruption == "another" else ""
        raise LensplugError(
            f"corruption={corruption!r} takes one example{alike}, {len(inputs)} came: inputs[0:1], one by one."
        )
    # Some families show a video as pictures.
    kind = "video" if medium.name == "image" and inputs.videos and not inputs.images else medium.name
    of_example = getattr(inputs, FIELDS[kind])
    if not of_example or not of_example[0]:
        raise LensplugError(f"the {kind} of these inputs is not known: make them with lens.prepare, or use 'noise'.")
    own = list(of_example[0])
    indices = range(len(own)) if medium.index is None else [medium.index]
    if corruption == "another":
        given = _loaded(another, kind, len(indices), medium)
        new = [FIT[kind](one, own[index]) for index, one in zip(indices, given, strict=True)]
    else:
        new = [_blank(own[index], kind, corruption) for index in indices]
    for index, one in zip(indices, new, strict=True):
        own[index] = one
    media: dict[str, Any] = {FIELDS[kind]: [own]}
    variant = lens.with_media(inputs, **media)
    return replace(inputs, embeds=variant.embeds, decoder_inputs=variant.decoder_inputs)


def _blank(own: Any, kind: str, corruption: Corruption) -> Any:
    if kind == "image":
        return blank_image(own, BLANKS[corruption])
    if kind == "video":
        return blank_video(own, BLANKS[corruption])
    if corruption == "mean":
        raise LensplugError("a sound has no mean colour: 'blank' is silence, 'blur' muffles it, 'noise' is for all.")
    return silence(own) if corruption == "blank" else muffled(own)


def _loaded(another: Any, kind: str, n_media: int, medium: Medium) -> Sequence[Any]:
    given = listed(another, FIELDS[kind])
    if len(given) != n_media:
        hint = "" if medium.index is not None else ", or say which of them is another, media_index="
        raise LensplugError(f"another is {len(given)} {kind}(s), and {n_media} are corrupted: give as many{hint}.")
    return [LOAD[kind](one) for one in given]


def _as_prepared(inputs: MultimodalInput, another: MultimodalInput, medium: Medium) -> MultimodalInput:
    """Another prompt that differs in the medium only."""
    what = f"prepare it from the same prompt and a {medium.name} of the same size, or give the {medium.name} itself"
    if inputs.tokens.shape != another.tokens.shape:
        raise LensplugError(
            f"another has {list(another.tokens.shape)} examples and positions, and the inputs"
            f" {list(inputs.tokens.shape)}: {what}."
        )
    if not torch.equal(inputs.tokens.cpu(), another.tokens.cpu()):
        raise LensplugError(
            f"another has other words (or padding) than the inputs: {what}; activation_patching compares other words."
        )
    counterparts(inputs, another)
    theirs = another.embeds.to(inputs.embeds)
    apart = (theirs - inputs.embeds).float().norm(dim=-1) > OTHER * inputs.embeds.float().norm(dim=-1)
    elsewhere = apart & inputs.attention_mask.bool() & ~medium.positions.to(apart.device)
    if bool(elsewhere.any()):
        example, position = elsewhere.nonzero()[0].tolist()
        kind = inputs.modality.position_names[example][position]
        raise LensplugError(
            f"another differs in more than the {medium}: so does the {kind} at position {position} of example"
            f" {example}. Say what is changed (medium=, media_index=), or take activation_patching."
        )
    return replace(inputs, embeds=theirs, decoder_inputs=another.decoder_inputs)
