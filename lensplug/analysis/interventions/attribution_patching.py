"""Attribution patching: activation patching to first order, at all places at once.

Method:

1. Run the clean prompt and cache an activation a_clean of each layer, moved to the positions of the corrupt prompt.
2. Run the corrupt prompt with gradients, and go back once from the target m: dm/da of every layer at once.
3. attribution = sum over the place of (a_clean - a_corrupt) . dm/da, an estimate of m_patched - m_corrupt: a place is
   a group of positions, a head, or a head at a group, as in `activation_patching`.
4. With steps=n > 1 the gradient of a layer is averaged over n points of the straight line between its activations:
   all places of this layer, and no other, are a_corrupt + t x (a_clean - a_corrupt), with t = 0, 1/n, ..., (n - 1)/n.
   With n = 1 that is the corrupt run.
5. With verify=k the k places of each example with the largest |attribution| are patched, one at a time, and Spearman's
   rank correlation between attribution and what is measured there is in the result.

It is exact where the target is linear in the activation between corrupt and clean. With steps, the attributions of a
layer's places add up, as n grows, to what patching all of them changes (integrated gradients); each place's is measured
among others that are changed too, and may be a worse estimate of patching it alone: see `verify`.

Papers: Nanda 2023, "Attribution patching"; Syed et al. 2023, arXiv 2310.10348; with steps: Sundararajan et al. 2017,
arXiv 1703.01365, and Hanna et al. 2024, arXiv 2403.17806; Kramar et al. 2024, arXiv 2403.00745, on where it fails.

When to use it: to search thousands of places, positions of a picture and heads in all layers, in the time of a few
runs; then measure the strongest (`verify`, `activation_patching`).

When not to use it: as the number that is reported. Large differences, as of the whole stream in early layers, are far
from linear; softmax and norms that saturate hide places (q, k and patterns above all). The rank correlation is over the
places that came out strongest: it says whether their order holds, not what was missed.

It costs a run of the clean prompt, one of the corrupt prompt, and one with gradients and its way back, with the memory
of the activations of all layers; each further step costs a run with gradients for each layer, from there on. Attention
is that of `activation_patching`: SDPA, or full patterns if the target is a function or patterns are patched.

Example:
    question = "What is the color? Answer single word."
    red, blue = (lens.prepare(question, images=[image]) for image in (picture, other_picture))
    estimated = analysis.attribution_patching(lens, red, blue, ("Red", "Blue"), activation="z", by="head", verify=8)
    estimated.rank_correlation                     # [example]
    views.activation_patching(estimated)           # layer x head
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from lensplug.analysis.attention.cached_mixing import layer_range
from lensplug.analysis.attention.resolve_groups import Merge
from lensplug.analysis.interventions.measured_target import rounding_of
from lensplug.analysis.interventions.patched_places import (
    Activation,
    PatchedPlaces,
    Places,
    patched_groups,
    refuse_no_heads,
)
from lensplug.analysis.interventions.patching_sweep import PatchingSweep
from lensplug.analysis.interventions.place_gradients import PlaceGradients
from lensplug.analysis.interventions.recovered_effect import RecoveredEffect
from lensplug.analysis.interventions.source_run import source_run
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance
from lensplug.errors import LensplugError
from lensplug.inputs.logit_targets import Target
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.validation.arguments import at_least, checked

MOST_STEPS = 1000
"""Each is a run for every layer: more would take hours."""


@dataclass(frozen=True, repr=False)
class AttributionPatching(RecoveredEffect):
    """What patching would change on the corrupt prompt, to first order; `recovered` is of this estimate."""

    attribution: Float[Tensor, "example layer group head"]
    """(a_clean - a_corrupt) . dm/da. An axis that is patched as a whole has one entry; NaN where there is no group."""
    verified: Float[Tensor, "example layer group head"]
    """The target, patched, at the strongest places of each example (`ActivationPatching.values`); elsewhere NaN."""
    rank_correlation: Float[Tensor, " example"]
    """Spearman's, between attribution and verified over these places; NaN if they are fewer than two, or all equal."""

    @property
    def change(self) -> Float[Tensor, "example layer group head"]:
        """The attribution: the target, patched, minus that of the corrupt prompt, to first order."""
        return self.attribution

    def more_columns(self) -> dict[str, Float[Tensor, "example layer group head"]]:
        """What was measured exactly; NaN where nothing was."""
        return {"verified": self.verified}


@checked
def attribution_patching(
    lens: Lens,
    clean: MultimodalInput,
    corrupt: MultimodalInput,
    target: Target,
    *,
    activation: Activation = "resid_pre",
    by: PatchedPlaces = "position",
    groups: Merge = None,
    layers: tuple[int, int] | None = None,
    position: int = -1,
    steps: int = 1,
    verify: int = 0,
    progress: bool = True,
) -> AttributionPatching:
    """Estimate at all places what patching the clean activation there would change.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        clean: Inputs of `prepare` or `encode`; one example or several.
        corrupt: As many, pairwise with the same places for text and media.
        target: What is measured: the logit of a token (a word that is one token, an id, ids `[example]`), the
            difference of two, or a function of all logits `[batch pos d_vocab]` that makes a number with a gradient for
            each example, of its own logits.
        activation: As for `activation_patching`.
        by: As for `activation_patching`.
        groups: As for `activation_patching`: the attributions of a group's positions are added up.
        layers: The first and the last layer; all by default.
        position: Where a token's logit is read; negative ones count from the last that is not padding.
        steps: Over how many points between a layer's activations its gradient is averaged, at most 1000; 1: the corrupt
            run's.
        verify: How many places of each example are patched, the strongest first.
        progress: Show a bar in a terminal or notebook.

    Raises:
        LensplugError: If the positions cannot be aligned, the target is not exactly one token, has no gradient or is
            one number of several examples, a gradient is not finite (fp16), or an option is not known.
    """
    from transformer_lens.utilities import get_act_name  # it takes seconds to import

    refuse_no_heads(activation, by)
    at_least(1, steps=steps)
    if steps > MOST_STEPS:
        raise LensplugError(f"steps is {steps}, expected at most {MOST_STEPS}: each is a run for every layer.")
    at_least(0, verify=verify)
    model = lens.model
    chosen, merged = list(layer_range(layers, model.cfg.n_layers)), patched_groups(groups, by, corrupt)
    names, pattern = [str(get_act_name(activation, layer)) for layer in chosen], activation == "pattern"
    source = source_run(lens, clean, corrupt, target, position, names)
    of_corrupt = source.of_other
    n_heads = 1 if by == "position" else source.cache[names[0]].shape[1 if pattern else 2]
    places = Places(torch.stack([groups_of_example.of_position for groups_of_example in merged]), n_heads, pattern)
    of_layer = dict(zip(chosen, names, strict=True))
    clean_of = {name: source.at_places(name) for name in names}
    with tqdm(total=steps, unit="run", disable=None if progress else True) as bar:
        with lens.edited_runs(corrupt, of_corrupt.rows, whole_patterns=pattern, batch=1, gradients=True) as runs:
            value_of_corrupt = of_corrupt(runs.unedited)
            gradients = PlaceGradients(runs, places, of_corrupt, of_layer, clean_of)
            attributions = [gradients.of_all_layers()]
            bar.update()
            for step in range(1, steps):
                attributions.append(gradients.of_each_layer(step / steps))
                bar.update()
        attribution = torch.stack(attributions).mean(dim=0)
        verified = torch.full_like(attribution, torch.nan)
        if verify:
            strongest = _strongest(attribution, verify)
            bar.total, _ = steps + int(strongest.any(dim=0).sum()), bar.refresh()
            with lens.edited_runs(corrupt, of_corrupt.rows, whole_patterns=pattern) as runs:
                sweep = PatchingSweep(runs, places, of_corrupt, one_head=by != "position")
                verified = _measured(sweep, strongest, of_layer, clean_of, bar)
    gradient = "at the corrupt run" if steps == 1 else f"mean of {steps} points between"
    convention = f"clean {activation} into corrupt by {by}, to first order (gradient {gradient}), {of_corrupt.in_words}"
    return AttributionPatching(
        attribution=attribution,
        verified=verified,
        rank_correlation=_rank_correlations(attribution, verified),
        clean=source.value,
        corrupt=value_of_corrupt,
        rounding=rounding_of(model.cfg, source.measured, of_corrupt),
        groups=places.groups,
        labels=tuple(tuple(groups_of_example.names) for groups_of_example in merged),
        layers=tuple(chosen),
        activation=activation,
        by=by,
        provenance=Provenance.of_model(model, "attribution_patching", convention),
    )


def _strongest(
    attribution: Float[Tensor, "example layer group head"], number: int
) -> Bool[Tensor, "example layer group head"]:
    """The places of each example with the largest attribution, by its size."""
    strength = attribution.abs().nan_to_num(nan=-1).flatten(1)
    best = strength.topk(min(number, strength.shape[1]), dim=1).indices
    chosen = torch.zeros_like(strength, dtype=torch.bool).scatter(1, best, True) & (strength >= 0)
    return chosen.view(attribution.shape)


def _measured(
    sweep: PatchingSweep,
    chosen: Bool[Tensor, "example layer group head"],
    of_layer: dict[int, str],
    clean: dict[str, Tensor],
    bar: Any,
) -> Float[Tensor, "example layer group head"]:
    """The target with each of these places patched; NaN elsewhere."""
    table = torch.full(chosen.shape, torch.nan)
    of_a_layer: Sequence[tuple[int, int]] = sweep.places.of_a_layer
    group, head = torch.tensor(of_a_layer).T
    for index, (layer, name) in enumerate(of_layer.items()):
        places = list(compress(of_a_layer, chosen[:, index, group, head].any(dim=0).tolist()))
        if places:
            values = sweep.of_layer(layer, {name: clean[name]}, lambda n_runs, _: bar.update(n_runs), places)
            groups, heads = torch.tensor(places).T
            table[:, index, groups, heads] = values.T
    return table.masked_fill(~chosen, torch.nan)


def _rank_correlations(
    attribution: Float[Tensor, "example layer group head"], verified: Float[Tensor, "example layer group head"]
) -> Float[Tensor, " example"]:
    """Spearman's over the places that were measured, of each example."""
    correlations = []
    for estimated, measured in zip(attribution, verified, strict=True):
        known = ~measured.isnan()
        pair = estimated[known].numpy(), measured[known].numpy()
        is_ranked = all(len(set(values.tolist())) > 1 for values in pair)  # scipy warns of constants
        correlations.append(float(stats.spearmanr(*pair).statistic) if is_ranked else math.nan)
    return torch.tensor(correlations)
