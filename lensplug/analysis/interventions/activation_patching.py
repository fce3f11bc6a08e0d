"""Activation patching between two images or sounds: which activation carries the difference?

Method:

1. Run the clean prompt and cache an activation a_clean[layer, position, ...].
2. Run the corrupt prompt: another image or sound in the same positions.
3. For each layer and position (or head), rerun the corrupt prompt with a_clean put in at that place only (denoising).
4. Report the recovered fraction of the effect: recovered = (y_patched - y_corrupt) / (y_clean - y_corrupt), with y the
   target (best a logit difference): 0 = as corrupt, 1 = as clean.

Places are aligned by the modality map; prompts that cannot be aligned are refused. If clean and corrupt differ by no
more than rounding explains, `recovered` is NaN.

Papers: Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; Heimersheim & Nanda 2024, "How to use and
interpret activation patching", arXiv 2404.15255.

When to use it: for a causal claim, next to attention and rollouts, which only describe. Choose pairs that differ in one
property only.

When not to use it: backup paths that carry the same information hide an effect (McGrath et al. 2023, "The Hydra
Effect", arXiv 2307.15771), and an activation of one image among those of another is out of distribution. Each place
needs its own run: merge positions (`groups="modality"`) when there are thousands, or take gradients
(`attribution_patching`).

Places of one layer are run side by side, and the layers below are run once for all of them (`lens.edited_runs`). The
functions of `transformer_lens.patching`, which run one place after another from the first layer on, take the lens's
inputs in place of tokens, too, if both prompts have the same positions:

    patching.get_act_patch_resid_pre(lens.model, blue, cache_of_red, metric)

By position, `views.image_overlay(patched, blue)` shows the effect over the image:

    patched = analysis.activation_patching(lens, red, blue, ("Red", "Blue"), groups="modality")

Example:
    question = "What is the color? Answer single word."
    red, blue = (lens.prepare(question, images=[image]) for image in (picture, other_picture))
    patched = analysis.activation_patching(lens, red, blue, ("Red", "Blue"), activation="z", by="head")
    patched.recovered                              # [example layer group head]
    views.activation_patching(patched)             # layer x head
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lensplug.analysis.attention.cached_mixing import layer_range
from lensplug.analysis.attention.resolve_groups import Merge
from lensplug.analysis.interventions.flow_paths import windows_of
from lensplug.analysis.interventions.measured_target import rounding_of
from lensplug.analysis.interventions.patched_places import (
    Activation,
    PatchedPlaces,
    Places,
    patched_groups,
    refuse_no_heads,
)
from lensplug.analysis.interventions.patching_sweep import PatchingSweep
from lensplug.analysis.interventions.recovered_effect import RecoveredEffect
from lensplug.analysis.interventions.runtime_warning import announce
from lensplug.analysis.interventions.source_run import source_run
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance
from lensplug.inputs.logit_targets import Target
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.validation.arguments import at_least, checked


@dataclass(frozen=True, repr=False)
class ActivationPatching(RecoveredEffect):
    """What is measured on the corrupt prompt when one activation is the clean one."""

    values: Float[Tensor, "example layer group head"]
    """The target, patched. An axis that is patched as a whole has one entry; NaN where an example has no such group."""

    @property
    def change(self) -> Float[Tensor, "example layer group head"]:
        """The target, patched, minus that of the corrupt prompt."""
        return self.values - self.corrupt[:, None, None, None]


@checked
def activation_patching(
    lens: Lens,
    clean: MultimodalInput,
    corrupt: MultimodalInput,
    target: Target,
    *,
    activation: Activation = "resid_pre",
    by: PatchedPlaces = "position",
    groups: Merge = None,
    layers: tuple[int, int] | None = None,
    window: int = 1,
    position: int = -1,
    batch: int | None = None,
    progress: bool = True,
) -> ActivationPatching:
    """Put clean activations into the corrupt run, one place at a time.

    Clean, corrupt and patched runs use the same attention: SDPA, or full patterns if the target is a function or
    patterns are patched. Two prompts without an effect then differ by rounding only, which is bounded by eps x scale x
    sqrt(2 x layers + 1): eps is that of the model's dtype (at least float32's, in which norms are computed), once per
    addition to the residual stream, with errors that accumulate like a random walk; scale is the largest logit read, or
    the value of a target function. In fp32 that is a few 1e-5 for a logit of 20, in bfloat16 half a logit: smaller
    effects cannot be distinguished from zero.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        clean: Inputs of `prepare` or `encode`; one example or several.
        corrupt: As many, pairwise with the same places for text and media.
        target: What is measured: the logit of a token (a word that is one token, an id, ids `[example]`), the
            difference of two, or, as in `transformer_lens.patching`, a function of all logits `[batch pos d_vocab]`
            that makes a number for each example, or one, which is then that of every example.
        activation: TransformerLens's short name: "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"; of
            heads "q", "k", "v", "z", "pattern".
        by: "position": each position (all heads at once); of heads also "head" (at all positions) and
            "head_and_position". For "pattern" a position is the one that looks.
        groups: Positions that are patched together. None: each alone. "modality": images by view and region, sounds by
            time, as finely as makes at most 128, each text token alone. Or your own, of the corrupt prompt: a list of
            `views.group_positions(...)` or `Groups`, one for each example, or whole numbers from 0, `[pos]` or
            `[batch pos]`, which number the result too; what has -1 is left alone.
        layers: The first and the last layer to patch; all by default.
        window: How many layers around each are patched together, clipped at the first and the last; 1: each alone.
        position: Where a token's logit is read; negative ones count from the last that is not padding.
        batch: How many places of a layer are run side by side; None: as many as fit into half of the free memory, and
            no more than make it faster. 1 needs least.
        progress: Show a bar in a terminal or notebook.

    Raises:
        LensplugError: If the positions cannot be aligned, the target is not exactly one token, or an option is
            not known.
    """
    from transformer_lens.utilities import get_act_name  # it takes seconds to import

    refuse_no_heads(activation, by)
    at_least(1, batch=1 if batch is None else batch, window=window)
    model = lens.model
    chosen, merged = layer_range(layers, model.cfg.n_layers), patched_groups(groups, by, corrupt)
    windows = windows_of(chosen, window, model.cfg.n_layers)
    patched = sorted({layer for each in windows for layer in each})
    name_of, pattern = {layer: str(get_act_name(activation, layer)) for layer in patched}, activation == "pattern"
    source = source_run(lens, clean, corrupt, target, position, list(name_of.values()))
    of_corrupt = source.of_other
    n_heads = 1 if by == "position" else source.cache[name_of[patched[0]]].shape[1 if pattern else 2]
    places = Places(torch.stack([groups_of_example.of_position for groups_of_example in merged]), n_heads, pattern)
    with lens.edited_runs(corrupt, of_corrupt.rows, whole_patterns=pattern, batch=batch) as runs:
        value_of_corrupt = of_corrupt(runs.unedited)
        sweep = PatchingSweep(runs, places, of_corrupt, one_head=by != "position")
        with tqdm(total=len(chosen) * len(places.of_a_layer), unit="run", disable=None if progress else True) as bar:
            done = _Progress(bar, list(chosen), model.cfg.n_layers, len(places.of_a_layer))
            values = [
                sweep.of_layer(each[0], {name_of[layer]: source.at_places(name_of[layer]) for layer in each}, done)
                for each in windows
            ]
    together = "" if window == 1 else f", {window} layers together"
    convention = f"clean {activation} into corrupt by {by}{together}, {of_corrupt.in_words}"
    return ActivationPatching(
        values=places.laid_out(values),
        clean=source.value,
        corrupt=value_of_corrupt,
        rounding=rounding_of(model.cfg, source.measured, of_corrupt),
        groups=places.groups,
        labels=tuple(tuple(groups_of_example.names) for groups_of_example in merged),
        layers=tuple(chosen),
        activation=activation,
        by=by,
        provenance=Provenance.of_model(model, "activation_patching", convention),
    )


@dataclass
class _Progress:
    """A bar, and a warning of sweeps that will take minutes."""

    bar: Any
    layers: Sequence[int]
    n_layers: int
    """Of the model."""
    n_places: int
    """Of a layer."""
    _is_begun: bool = False  # a bar that is not shown does not count

    def __call__(self, n_runs: int, seconds: float) -> None:
        """Some runs are done."""
        if not self._is_begun:
            self._is_begun = True
            self._announce(n_runs, seconds)
        self.bar.update(n_runs)

    def _announce(self, n_runs: int, seconds: float) -> None:
        """Warn of long sweeps, from the time of the first batch: runs that begin at later layers take less."""
        depths = [self.n_layers - layer for layer in self.layers]
        remaining = self.n_places * len(self.layers) - n_runs
        per_run = seconds / n_runs * sum(depths) / len(depths) / depths[0]
        announce("activation_patching", remaining, per_run, shorter="groups=, layers=")
