"""Causal tracing: the medium is corrupted, and one state after another is put back.

Method:

1. Run the prompt and read the target m (clean); cache the states that are put back.
2. Corrupt the medium: noise on its embeddings, of a standard deviation that is `noise` times theirs, in several draws;
   or something in its place before the processor: a blank (a grey, mean-coloured or blurred picture or video, silence
   or a muffled sound), or another picture, video or sound. Read m (corrupt).
3. In the corrupt run, put back the clean state of one layer and place (a group of positions), and read m again.
4. recovered = (m_restored - m_corrupt) / (m_clean - m_corrupt): 0 as corrupt, 1 as clean; m is a mean over the draws.

Papers: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262 (noise of three standard
deviations); Basu et al. 2024, "Understanding Information Storage and Transfer in Multi-modal Large Language Models",
arXiv 2406.04236.

When to use it: to ask where a medium's contents are, of any prompt. With another picture or sound it is activation
patching (`activation_patching` takes two prompts, whose words may differ too), which fits the other one to the size and
length of the first.

When not to use it: as evidence of what a state holds of one property: a corrupt medium takes away all of them at once,
and so does another one that differs in more than that property. Noise and blanks are out of distribution, and different
ones can name different places; another picture is not, and is to be preferred (Zhang & Nanda 2023, arXiv 2309.16042).
What one layer's MLP writes alone is seldom enough: `window=10` puts back several, as the paper does.

Example:
    traced = analysis.causal_tracing(lens, inputs, "Red", corruption="blank", progress=False)
    traced.recovered                               # [example layer group head]
    views.activation_patching(traced)
    swapped = analysis.causal_tracing(lens, inputs, ("Red", "Blue"), another=other_picture, progress=False)
    noisy = analysis.causal_tracing(lens, inputs, "Red", restore="mlp_out", draws=2, progress=False)
    noisy.standard_error                           # over draws, of `values`
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.attention.resolve_groups import Merge
from lensplug.analysis.interventions.activation_patching import ActivationPatching, activation_patching
from lensplug.analysis.interventions.corrupted_media import IN_WORDS, Corruption, changed, medium_of, noisy
from lensplug.analysis.interventions.patched_places import StreamActivation
from lensplug.analysis.interventions.recovered_effect import RecoveredEffect
from lensplug.analysis.protocols import Lens
from lensplug.errors import LensplugError
from lensplug.inputs.logit_targets import Target
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.modality_map import MediumName
from lensplug.validation.arguments import at_least, checked

MOST_DRAWS = 100


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
    corruption: Corruption | None = None,
    another: Any = None,
    medium: MediumName | None = None,
    media_index: int | None = None,
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
        inputs: From `prepare` or `encode`; for anything but noise (and inputs as `another`), one example whose pictures
            or sounds are known.
        target: What is measured: the logit of a token, the difference of two (best), or a function of all logits.
        corruption: What becomes of the medium: "noise" on its embeddings (the default); "blank" (grey, silence), "mean"
            (a picture's colour) or "blur" (for sounds a low-pass filter: no word is understood); or "another".
        another: What is put in its place: a picture, video or sound in any form that `prepare` takes (or a list, for
            several), which is fitted: pictures and frames are resized, sounds cut or followed by silence. Or inputs of
            `prepare`, of the same words and places, that differ in this medium only; of as many examples.
        medium: What is corrupted: "image", "video" or "audio"; by default the only one that there is.
        media_index: Which of several, counted from 0; by default all of them, and `another` is then a list.
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
    how = _corruption(corruption, another)
    chosen = medium_of(inputs, medium, media_index)
    if how == "noise":
        corrupt = [noisy(inputs, chosen, noise, seed + draw) for draw in range(draws)]
        words = f"noise of {noise:g} standard deviations, {draws} draw(s) from seed {seed}"
    else:
        corrupt, words = [changed(lens, inputs, chosen, how, another)], IN_WORDS[how]
    results = [
        activation_patching(
            lens, inputs, each, target, activation=restore, groups=groups, layers=layers, window=window,
            position=position, batch=batch, progress=progress,
        )
        for each in corrupt
    ]  # fmt: skip
    return _mean(results, how, f"{chosen} corrupted by {words}")


def _corruption(corruption: Corruption | None, another: Any) -> Corruption:
    if another is not None:
        if corruption not in (None, "another"):
            raise LensplugError(f"corruption is {corruption!r}, and another is given: leave one of them out.")
        return "another"
    if corruption == "another":
        raise LensplugError("corruption='another' needs another=: a picture, a sound, or prepared inputs.")
    return corruption or "noise"


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
