"""The value of each set of regions: the target, with these regions as they are and all others blanked.

This is the game that Shapley values share out. A set that was run once is known, so that a method which asks for it
again, as all permutations do, costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from lensplug.analysis.interventions.runtime_warning import announce
from lensplug.analysis.protocols import Lens
from lensplug.analysis.regions.places import Places
from lensplug.analysis.regions.prompt_words import mean_embedding
from lensplug.errors import LensplugError
from lensplug.inputs.edited_inputs import Variant, in_place
from lensplug.inputs.logit_targets import Terms
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.media import Sound
from lensplug.media.blank import Blank, blank_image, silence

At = Literal["medium", "embeddings"]
"""Where regions of a picture or sound are blanked: in it, before the processor, or in the merged embeddings."""
Measure = Literal["logit", "log_probability"]
"""What is read of the target."""
HALF = 0.5
"""A position is blanked where at least this share of what it sees is in blanked regions."""
AS_BEFORE = 0.02
"""The largest difference between embeddings that are made again and the first, as a fraction of their largest value:
half precision, and sounds that were padded in a batch."""


@dataclass
class BlankedRuns:
    """One example; called with sets of regions, it returns the value of each."""

    lens: Lens
    inputs: MultimodalInput
    places: Places
    terms: Terms
    at: At
    baseline: Blank
    measure: Measure
    media_index: int
    batch_size: int
    progress: Callable[[str], None]
    expected_runs: int
    """How many there will be, for a warning."""
    known: dict[tuple[bool, ...], float] = field(default_factory=dict)
    """Which regions are there -> the value."""

    def __call__(self, present: Bool[Tensor, "run region"]) -> Float[Tensor, " run"]:
        """The value of each set, in fp64.

        Args:
            present: True where a region is as it is, False where it is blanked.

        Raises:
            LensplugError: If the model gives NaN, or the medium cannot be made again as it was.
        """
        rows = [tuple(row) for row in present.tolist()]
        new = list(dict.fromkeys(row for row in rows if row not in self.known))
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self.progress(f"blanking regions, set {len(self.known) + 1}")
            begun, is_second = perf_counter(), 0 < len(self.known) <= self.batch_size
            for row, value in zip(batch, self._values(torch.tensor(batch)).tolist(), strict=True):
                self.known[row] = value
            if is_second:
                remaining = self.expected_runs - len(self.known)
                seconds = (perf_counter() - begun) / len(batch)
                announce("region_attribution", remaining, seconds, shorter="fewer regions, or samples=")
        return torch.tensor([self.known[row] for row in rows], dtype=torch.float64)

    def _values(self, present: Bool[Tensor, "run region"]) -> Float[Tensor, " run"]:
        terms = Terms(*(part.expand(len(present), *part.shape[1:]) for part in self._parts))
        logits = self.lens.logits_at(self._variant(present), terms.rows).float()
        values = terms.of(logits if self.measure == "logit" else logits.log_softmax(dim=-1)).double().cpu()
        if bool(values.isnan().any()):
            raise LensplugError("the model gives NaN: use bfloat16 or float32.")
        return values

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.terms.rows, self.terms.ids, self.terms.weights

    def _variant(self, present: Bool[Tensor, "run region"]) -> Variant:
        if self.at == "embeddings" or self.places.kind == "text":
            covered = ((~present).float() @ self._share >= HALF).to(self.inputs.embeds.device)
            embeds = torch.where(covered[:, :, None], self._blank_embeddings, self.inputs.embeds)
            return in_place(self.inputs, embeds, torch.zeros(len(present), dtype=torch.long))
        variant = self._with_media([self._blanked(~row) for row in present])
        for row in (present.all(dim=1)).nonzero()[:, 0].tolist():
            self._refuse_other_embeddings(variant.embeds[row])
        return variant

    def _with_media(self, media: Sequence[Any]) -> Variant:
        """The prompt with each of these in the place of its picture or sound."""
        name = "images" if self.places.kind == "image" else "audio"
        own = list(getattr(self.inputs, name)[0])
        sets = [[*own[: self.media_index], medium, *own[self.media_index + 1 :]] for medium in media]
        return self.lens.with_media(self.inputs, **{name: sets})

    def _blanked(self, absent: Bool[Tensor, " region"]) -> Any:
        """The picture or sound with these regions blanked."""
        whole, blank = self._media
        if self.places.masks is not None:
            mask = self.places.masks[absent].any(dim=0)
            return Image.composite(blank, whole, Image.fromarray(mask.numpy()))
        assert self.places.spans_s is not None
        waveform = whole.waveform.clone()
        for start, end in self.places.spans_s[absent].tolist():
            waveform[round(start * whole.sampling_rate) : round(end * whole.sampling_rate)] = 0
        return Sound(waveform, whole.sampling_rate)

    @cached_property
    def _media(self) -> tuple[Any, Any]:
        """The picture or sound, and a wholly blank one."""
        if self.places.kind == "image":
            image = self.inputs.images[0][self.media_index]
            return image, blank_image(image, self.baseline)
        sound = self.inputs.audio[0][self.media_index]
        return sound, silence(sound)

    def _refuse_other_embeddings(self, embeds: Float[Tensor, "pos d_model"]) -> None:
        """The whole medium through the processor again must give what the inputs hold."""
        attended = self.inputs.attention_mask[0].bool()
        before, again = (one[attended].float() for one in (self.inputs.embeds[0], embeds))
        difference = float((again - before).abs().max() / before.abs().max())
        if difference > AS_BEFORE:
            raise LensplugError(
                f"the {self.places.kind} of these inputs, prepared again, gives other embeddings (by"
                f" {difference:.0%}): the processor was called with settings of its own, or the inputs were edited."
                " Prepare them with lens.prepare, or blank embeddings: at='embeddings'."
            )

    @cached_property
    def _blank_embeddings(self) -> Tensor:
        """What stands in the places of blanked positions: a wholly blank medium's embeddings, or for words the mean."""
        if self.places.kind == "text":
            return mean_embedding(self.lens).to(self.inputs.embeds)
        return self._with_media([self._media[1]]).embeds

    @cached_property
    def _share(self) -> Float[Tensor, "region pos"]:
        """How much of what each position sees or hears is in each region."""
        if self.places.positions is not None:
            return self.places.positions.float()
        share = torch.zeros(len(self.places), self.inputs.tokens.shape[1])
        modality = self.inputs.modality
        if self.places.masks is not None:
            grid, positions = modality.image_grid(self.media_index, 0), modality.image_positions(self.media_index, 0)
            if grid is not None:
                share[:, positions.cpu()] = torch.stack([grid.overlap(mask) for mask in self.places.masks])
        elif self.places.spans_s is not None:
            line, positions = (
                modality.audio_timeline(self.media_index, 0),
                modality.audio_positions(self.media_index, 0),
            )
            if line is not None:
                start, end = self.places.spans_s[:, :1], self.places.spans_s[:, 1:]
                inside = torch.minimum(end, line.end_s) - torch.maximum(start, line.start_s)
                share[:, positions.cpu()] = inside.clamp(min=0) / (line.end_s - line.start_s)
        unseen = (share.amax(dim=1) == 0).nonzero()[:, 0].tolist()
        if unseen:
            raise LensplugError(
                f"{self.places.names[unseen[0]]} is seen by no position, or where positions lie is not known in this"
                " family: blank the medium itself, at='medium'."
            )
        return share
