"""Region attribution: which part of the picture, of the sound or of the question does an answer come from?

Method, for regions 1 … n of one medium and a target, such as the logit of a word:

1. v(S) is the target with the regions of S as they are and all others blanked. Pictures and sounds are blanked
   *before the processor*, so that the base view and the tiles of a picture show the same (blanking the positions of one
   view leaves the region to be read in the other). The words of a prompt are replaced by the mean of all embeddings.
2. "occlusion": the value of region i is v(all) - v(all without i).
3. "shapley": the mean, over all orders in which regions can be put back, of what region i adds when it comes,

       φᵢ = Σ_S |S|! (n - |S| - 1)! / n! · (v(S ∪ {i}) - v(S)),    Σᵢ φᵢ = v(all) - v(none)

   exactly for up to 7 regions, over `samples` orders drawn at random for more; a standard error says how much these
   differ. "kernel_shap" fits the same values by a weighted regression over `samples` sets.
4. The difference v(all) - v(none) - Σᵢ φᵢ is the result's `residual`.

captum computes steps 2 and 3, each set of regions is run once.

When to use it: to say where an answer comes from in pixels, seconds or words, whatever the encoder and the tiling do.
Where a thing covers several regions, or is seen twice, occlusion is near 0 for each of them, since the others are
enough; Shapley values share the effect out.

When not to use it: to find where in the model it happens (`activation_patching`). A blanked medium is out of
distribution, and a blank that itself says something misleads (black, in a question about colour): compare `baseline`s.
Shapley values of n regions cost some 25 n runs: begin with few regions.

Papers: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv 1311.2901 (occlusion);
Castro, Gómez & Tejada 2009, "Polynomial calculation of the Shapley value based on sampling"; Lundberg & Lee 2017,
"A Unified Approach to Interpreting Model Predictions", arXiv 1705.07874 (KernelShap). Code: captum.

Example:
    result = analysis.region_attribution(lens, inputs, "Red", (2, 2), method="shapley")
    result.top(2)
    result.full - result.none, result.residual
    views.image_overlay(result, inputs)
    analysis.region_attribution(lens, inputs, "Red", "words")                          # of the question
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.regions.blanked_runs import At, BlankedRuns, Measure
from lensplug.analysis.regions.captum_methods import (
    Method,
    attributed,
    expected_runs,
    is_exact,
    need_captum,
    refuse_samples,
    refuse_too_few_sets,
)
from lensplug.analysis.regions.places import Places, Regions, places_of
from lensplug.analysis.regions.region_attribution_result import RegionAttribution
from lensplug.errors import LensplugError
from lensplug.inputs.logit_targets import LogitTarget, Terms, Written, terms_of
from lensplug.inputs.multimodal_input import MultimodalInput, refuse_other_inputs
from lensplug.media.blank import Blank
from lensplug.validation.arguments import at_least, checked


@checked
def region_attribution(
    lens: Lens,
    inputs: MultimodalInput,
    target: LogitTarget,
    regions: Regions = (4, 4),
    *,
    method: Method = "occlusion",
    baseline: Blank | None = None,
    at: At = "medium",
    measure: Measure = "logit",
    position: int = -1,
    media_index: int = 0,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: Callable[[str], None] = lambda step: None,
) -> RegionAttribution:
    """How much each region of the picture, the sound or the words adds to a target.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        inputs: From `prepare`, or from `encode` with its media (`answer.inputs` for an answer).
        target: What is watched: a word that is one token, an id, ids `[example]`, a pair (the difference of two
            logits), or an answer (the sum over its tokens).
        regions: Of a picture: (rows, columns) of a grid, or a list of boxes x0 y0 x1 y1 and masks `[height width]`, in
            its own pixels. Of a sound: the length of each span in seconds (0.5), or a list of spans
            (start_s, end_s). Of the prompt: "words", or a list of texts in it. A dictionary gives each a name. What
            no region covers is never blanked.
        method: "occlusion", "shapley" or "kernel_shap".
        baseline: What a blanked region of a picture shows: "grey" (the default, since it holds nothing of the picture),
            the picture's "mean" colour, or "blur". Sounds are silent.
        at: "medium" blanks the picture or sound before the processor. "embeddings" blanks merged embeddings: a position
            that sees at least half in blanked regions gets that of a wholly blank medium. What a view shows through
            neighbouring positions, or a position that has no place, stays.
        measure: "logit" or "log_probability" (nats; for answers of several tokens).
        position: Where a token's logit is read; negative ones count from the last that is not padding.
        media_index: Which picture or sound of each example.
        samples: How many orders ("shapley") or sets ("kernel_shap") are drawn; by default all orders for up to 7
            regions, else 25 orders, or as many sets as those have.
        seed: Where chance begins.
        batch_size: How many blanked variants run at once.
        progress: Called with a few words before each batch.

    Returns:
        Values `[example region]`, with what is full and none, and where the regions are.

    Raises:
        LensplugError: If captum is not installed, regions are not in the inputs, the medium is not known or, prepared
            again, is another, or an option changes nothing.
    """
    at_least(1, batch_size=batch_size)
    refuse_other_inputs(inputs)
    refuse_samples(method, samples)
    need_captum(method)
    terms = terms_of(target, position, inputs, lens.tokenizer, lens.model.cfg.d_vocab_out)
    where = "over the answer" if isinstance(target, Written | MultimodalInput) else f"at position {position}"
    parts = []
    for example in range(len(inputs)):
        alone = cast(MultimodalInput, inputs[example : example + 1])
        places = places_of(regions, alone, media_index, lens.tokenizer)
        _refuse_without_effect(places, baseline, at)
        refuse_too_few_sets(method, samples, len(places))
        runs = BlankedRuns(
            lens,
            alone,
            places,
            Terms(*(part[example : example + 1] for part in (terms.rows, terms.ids, terms.weights))),
            at=at,
            baseline=baseline or "grey",
            measure=measure,
            media_index=media_index,
            batch_size=batch_size,
            progress=progress,
            expected_runs=expected_runs(method, len(places), samples),
        )
        full, none = runs(torch.tensor([[True] * len(places), [False] * len(places)])).tolist()
        values, error = attributed(method, runs, len(places), samples, seed)
        parts.append(
            RegionAttribution(
                values=values[None],
                standard_error=error[None],
                full=torch.tensor([full]),
                none=torch.tensor([none]),
                runs=torch.tensor([len(runs.known)]),
                names=(places.names,),
                kind=places.kind,
                provenance=_provenance(lens, places, baseline, at, f"{measure} {where}", method, samples, seed),
                boxes=None if places.boxes is None else places.boxes[None],
                masks=() if places.masks is None else (places.masks,),
                spans_s=None if places.spans_s is None else places.spans_s[None],
                grid=cast("tuple[int, int]", regions) if places.is_grid else None,
                media_index=media_index,
                measure=measure,
            )
        )
    return RegionAttribution.combine(parts)


def _refuse_without_effect(places: Places, baseline: Blank | None, at: At) -> None:
    if baseline is not None and places.kind != "image":
        does = "silent" if places.kind == "audio" else "replaced by the mean embedding"
        raise LensplugError(f"baseline={baseline!r} is for pictures: a blanked region of {places.kind} is {does}.")
    if at == "embeddings" and places.kind == "text":
        raise LensplugError("at='embeddings' changes nothing for words, whose embeddings are replaced in any case.")


def _provenance(
    lens: Lens,
    places: Places,
    baseline: Blank | None,
    at: At,
    read: str,
    method: Method,
    samples: int | None,
    seed: int,
) -> Provenance:
    drawn = "" if is_exact(method, len(places), samples) else f", seed {seed}"
    number = "" if samples is None else f", {samples} samples"
    blanked = {"image": f"by {baseline or 'grey'}", "audio": "by silence", "text": "by the mean embedding"}[places.kind]
    of = "merged embeddings" if at == "embeddings" or places.kind == "text" else "the medium, before the processor"
    convention = f"{read}; regions of {places.kind} blanked {blanked} in {of}; {method}{number}{drawn}"
    return Provenance.of_model(lens.model, "region_attribution", convention)
