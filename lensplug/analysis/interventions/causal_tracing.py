"""Causal tracing: the medium is corrupted, and one state after another is put back.

Method:

1. Run the prompt and read the target m (clean); cache the states that are put back.
2. Corrupt the medium: noise on its embeddings, of a standard deviation that is `noise` times theirs, in several draws;
   or a blank in its place before the processor (a grey, mean-coloured or blurred picture, silence). Read m (corrupt).
3. In the corrupt run, put back the clean state of one layer and place (a group of positions), and read m again.
4. recovered = (m_restored - m_corrupt) / (m_clean - m_corrupt): 0 as corrupt, 1 as clean; m is a mean over the draws.

Papers: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262 (noise of three standard
deviations); Basu et al. 2024, "Understanding Information Storage and Transfer in Multi-modal Large Language Models",
arXiv 2406.04236.

When to use it: where there is no second picture or sound that differs in one property only (`activation_patching` takes
such a pair, and asks a sharper question).

When not to use it: as evidence of what a state holds of one property: a corrupt medium takes away all of them at once.
Noise and blanks are out of distribution, and different ones can name different places (Zhang & Nanda 2023, arXiv
2309.16042). What one layer's MLP writes alone is seldom enough: `window=10` puts back several, as the paper does.

Example:
    traced = analysis.causal_tracing(lens, inputs, "Red", corruption="blank", progress=False)
    traced.recovered                               # [example layer group head]
    views.activation_patching(traced)
    noisy = analysis.causal_tracing(lens, inputs, "Red", restore="mlp_out", draws=2, progress=False)
    noisy.standard_error                           # over draws, of `values`
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.attention.resolve_groups import Merge
from lensplug.analysis.interventions.activation_patching import ActivationPatching, activation_patching
from lensplug.analysis.interventions.patched_places import StreamActivation
from lensplug.analysis.interventions.recovered_effect import RecoveredEffect
from lensplug.analysis.protocols import Lens
from lensplug.errors import LensplugError
from lensplug.inputs.edited_inputs import in_place
from lensplug.inputs.logit_targets import Target
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.media.blank import Blank, blank_image, silence
from lensplug.positions.by_modality import MEDIA
from lensplug.positions.modality_map import MediumName
from lensplug.validation.arguments import at_least, checked

Corruption = Literal["noise", "blank", "mean", "blur"]
"""Noise on the embeddings; or, in the medium's place: grey or silence, the picture's mean colour, a blurred picture."""
MOST_DRAWS = 100
BLANKS: dict[Corruption, Blank] = {"blank": "grey", "mean": "mean", "blur": "blur"}


@dataclass(frozen=True, repr=False)
class CausalTracing(RecoveredEffect):
    """The target when one state of the clean run is put back into a corrupt one; means over draws."""

    values: Float[Tensor, "example layer group head"]
    """The target, with the state put back; NaN where an example has no such group."""
    standard_error: Float[Tensor, "example layer group head"]
    """Of `values`, over the draws of noise; NaN of a single draw."""
    corruption: Corruption

    @property
    def change(self) -> Float[Tensor, "example layer group head"]:
        """The target with the state put back, minus that of the corrupt prompt."""
        return self.values - self.corrupt[:, None, None, None]

    def more_columns(self) -> dict[str, Float[Tensor, "example layer group head"]]:
        """The standard error of each value."""
        return {"standard_error": self.standard_error}


@checked
def causal_tracing(
    lens: Lens,
    inputs: MultimodalInput,
    target: Target,
    *,
    corruption: Corruption = "noise",
    medium: MediumName | None = None,
    noise: float = 3.0,
    draws: int = 3,
    seed: int = 0,
    restore: StreamActivation = "resid_post",
    groups: Merge = "modality",
    layers: tuple[int, int] | None = None,
    window: int = 1,
    position: int = -1,
    batch: int | None = None,
    progress: bool = True,
) -> CausalTracing:
    """Corrupt a medium, and put clean states back, one layer and place at a time.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        inputs: From `prepare` or `encode`; for anything but noise, one example whose pictures or sounds are known.
        target: What is measured: the logit of a token, the difference of two (best), or a function of all logits.
        corruption: What becomes of the medium.
        medium: Which: "image", "video" or "audio"; by default the only one that there is.
        noise: For "noise", the standard deviation in units of that of the medium's embeddings in each example.
        draws: For "noise", how many; others have one.
        seed: Random seed of the noise.
        restore: What is put back: "resid_post" (all that the layers so far have written), "resid_pre", "resid_mid",
            "attn_out", "mlp_out".
        groups: Positions that are put back together, as in `activation_patching`.
        layers: The first and the last layer; all by default.
        window: How many layers around each are put back together, clipped at the first and the last; the paper takes
            10 for "mlp_out" and "attn_out", and 1 for the stream, which holds what earlier layers wrote.
        position: Where a token's logit is read.
        batch: How many runs are made side by side; None: what fits.
        progress: Show a bar.

    Returns:
        Means over the draws, and their standard errors.

    Raises:
        LensplugError: If there is no such medium, it cannot be corrupted so, or an option is out of range.
    """
    at_least(1, draws=draws)
    if draws > MOST_DRAWS:
        raise LensplugError(f"draws is {draws}, expected at most {MOST_DRAWS}: each is a whole table of runs.")
    if not 0 < noise < float("inf"):
        raise LensplugError(f"noise is {noise}, expected a number above 0: standard deviations of the embeddings.")
    chosen = _medium(inputs, medium)
    if corruption == "noise":
        corrupt = [_noisy(inputs, chosen, noise, seed + draw) for draw in range(draws)]
    else:
        corrupt = [_blanked(lens, inputs, chosen, corruption)]
    results = [
        activation_patching(
            lens, inputs, each, target, activation=restore, groups=groups, layers=layers, window=window,
            position=position, batch=batch, progress=progress,
        )
        for each in corrupt
    ]  # fmt: skip
    return _mean(results, corruption, f"{chosen} corrupted by {_in_words(corruption, noise, draws, seed)}")


def _medium(inputs: MultimodalInput, medium: MediumName | None) -> MediumName:
    there = [name for name in MEDIA if name in inputs.modality.names]
    if medium is None and len(there) != 1:
        raise LensplugError(f"the inputs have {' and '.join(there) or 'no medium'}: say which is corrupted, medium=.")
    chosen = there[0] if medium is None else medium
    lacking = ~inputs.modality.mask(chosen).any(dim=1)
    if bool(lacking.any()):
        raise LensplugError(f"example {int(lacking.nonzero()[0])} has no {chosen} to corrupt.")
    return chosen


def _noisy(inputs: MultimodalInput, medium: MediumName, noise: float, seed: int) -> MultimodalInput:
    """The same inputs with noise on the embeddings of a medium."""
    embeds, at = inputs.embeds.clone(), inputs.modality.mask(medium).to(inputs.embeds.device)
    generator = torch.Generator().manual_seed(seed)
    for example, mask in enumerate(at):
        own = embeds[example, mask].float()
        drawn = torch.randn(own.shape, generator=generator).to(own.device)
        embeds[example, mask] = (own + noise * own.std() * drawn).to(embeds.dtype)
    return replace(inputs, embeds=embeds, decoder_inputs=in_place(inputs, embeds).decoder_inputs)


def _blanked(lens: Lens, inputs: MultimodalInput, medium: MediumName, corruption: Corruption) -> MultimodalInput:
    """The same inputs with a blank in place of a medium."""
    if len(inputs) != 1:
        raise LensplugError(
            f"corruption={corruption!r} takes one example, {len(inputs)} came: inputs[0:1], one by one."
        )
    if medium == "video" or medium == "audio" and corruption != "blank":
        raise LensplugError(f"a {medium} cannot be corrupted by {corruption!r}: 'noise' can, and 'blank' a sound.")
    known: Any = inputs.images if medium == "image" else inputs.audio
    if not known or not known[0]:
        raise LensplugError(f"the {medium} of these inputs is not known: make them with lens.prepare, or use 'noise'.")
    if medium == "image":
        variant = lens.with_media(inputs, images=[[blank_image(image, BLANKS[corruption]) for image in known[0]]])
    else:
        variant = lens.with_media(inputs, audio=[[silence(sound) for sound in known[0]]])
    return replace(inputs, embeds=variant.embeds, decoder_inputs=variant.decoder_inputs)


def _mean(results: list[ActivationPatching], corruption: Corruption, words: str) -> CausalTracing:
    first = results[0]
    values = torch.stack([result.values for result in results])
    error = values.std(dim=0) / len(results) ** 0.5 if len(results) > 1 else torch.full_like(first.values, torch.nan)
    provenance = replace(
        first.provenance, analysis="causal_tracing", convention=f"{first.provenance.convention}; {words}"
    )
    return CausalTracing(
        clean=first.clean,
        corrupt=torch.stack([result.corrupt for result in results]).mean(dim=0),
        rounding=first.rounding,
        groups=first.groups,
        labels=first.labels,
        layers=first.layers,
        activation=first.activation,
        by=first.by,
        provenance=provenance,
        values=values.mean(dim=0),
        standard_error=error,
        corruption=corruption,
    )


def _in_words(corruption: Corruption, noise: float, draws: int, seed: int) -> str:
    if corruption == "noise":
        return f"noise of {noise:g} standard deviations, {draws} draw(s) from seed {seed}"
    return {"blank": "a grey or silent blank", "mean": "its mean colour", "blur": "a blur"}[cast(str, corruption)]
