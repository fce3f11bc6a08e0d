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
needs its own run: merge positions (`groups="modality"`) when there are thousands.

The loop is `transformer_lens.patching.generic_activation_patch`. The other functions of `transformer_lens.patching`
take the lens's inputs in place of tokens, too, if both prompts have the same positions:

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

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.attention.cached_mixing import layer_range
from lensplug.analysis.attention.resolve_groups import Merge, position_groups
from lensplug.analysis.interventions.runtime_warning import announce
from lensplug.analysis.processed_weights import refuse_centred_logits
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.inputs.aligned_positions import counterparts
from lensplug.inputs.logit_targets import Target, terms_of
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.groups import Groups
from lensplug.validation.arguments import check_example, checked

if TYPE_CHECKING:
    import pandas as pd

StreamActivation = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
HeadActivation = Literal["q", "k", "v", "z", "pattern"]
Activation = StreamActivation | HeadActivation
"""TransformerLens's short names: of the stream, and of heads."""
HEADS: tuple[HeadActivation, ...] = get_args(HeadActivation)
PatchedPlaces = Literal["position", "head", "head_and_position"]
"""What is patched at a time: a position of all heads, a head at all positions, or a head at a position."""


@dataclass(frozen=True, repr=False)
class ActivationPatching(Result):
    """What is measured on the corrupt prompt when one activation is the clean one."""

    label_columns = ("example", "layer", "group", "label", "head")
    main_number = "recovered"
    example_depth = {"labels": 0}

    values: Float[Tensor, "example layer group head"]
    """The target, patched. An axis that is patched as a whole has one entry; NaN where an example has no such group."""
    clean: Float[Tensor, " example"]
    """The target of the clean prompt."""
    corrupt: Float[Tensor, " example"]
    rounding: Float[Tensor, " example"]
    """What rounding explains of a difference between the two; see `activation_patching`."""
    groups: Int[Tensor, "example pos"]
    """The group of each position of the corrupt prompt; -1 where nothing is patched."""
    labels: tuple[tuple[str, ...], ...]
    """Names of each example's groups."""
    layers: tuple[int, ...]
    activation: Activation
    by: PatchedPlaces
    provenance: Provenance

    @property
    def recovered(self) -> Float[Tensor, "example layer group head"]:
        """How much of the way from corrupt (0) to clean (1); NaN where there is nothing to recover.

        That is, where the two prompts differ by no more than rounding explains (`rounding`).
        """
        effect = self.clean - self.corrupt
        effect = effect.masked_fill(effect.abs() <= self.rounding, torch.nan)[:, None, None, None]
        return (self.values - self.corrupt[:, None, None, None]) / effect

    @checked
    def groups_of(self, example: int = 0) -> list[int]:
        """The numbers of the groups that an example has; elsewhere values are NaN."""
        check_example(example, len(self.values))
        return sorted(set(self.groups[example].tolist()) - {-1})

    @checked
    def by_position(self, example: int = 0) -> dict[str, Float[Tensor, " pos"]]:
        """What each position's group recovers in each layer, for overlays; NaN where nothing is patched.

        Raises:
            LensplugError: If it was not patched by position, with all heads together.
        """
        check_example(example, len(self.values))
        if self.by != "position":
            raise LensplugError(f"this was patched by {self.by}: an overlay needs by='position'.")
        group_of_position = self.groups[example]
        rows = self.recovered[example, :, :, 0][:, group_of_position.clamp(min=0)].masked_fill(
            group_of_position < 0, torch.nan
        )
        return {f"layer {layer}": row for layer, row in zip(self.layers, rows, strict=True)}

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, layer, group and head; head -1 is all of them."""
        import pandas as pd

        examples, layers, _, heads = self.values.shape
        recovered = self.recovered
        return pd.DataFrame(
            {
                "example": example,
                "layer": self.layers[layer],
                "group": group,
                "label": self.labels[example][group],
                "head": -1 if self.by == "position" else head,
                "value": float(self.values[example, layer, group, head]),
                "recovered": float(recovered[example, layer, group, head]),
            }
            for example in range(examples)
            for layer, group, head in product(range(layers), self.groups_of(example), range(heads))
        )


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
    position: int = -1,
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
        position: Where a token's logit is read; negative ones count from the last that is not padding.

    Raises:
        LensplugError: If the positions cannot be aligned, the target is not exactly one token, or an option is
            not known.
    """
    from transformer_lens import patching  # it takes seconds to import
    from transformer_lens.utilities import get_act_name

    _refuse_bad_options(activation, by)
    aligned, model = counterparts(clean, corrupt), lens.model
    chosen, merged = layer_range(layers, model.cfg.n_layers), _groups(groups, by, corrupt)
    of_clean, of_corrupt = (_Measured(lens, inputs, target, position) for inputs in (clean, corrupt))
    names, pattern = [get_act_name(activation, layer) for layer in chosen], activation == "pattern"
    query_positions: list[int] | None = None if pattern or of_clean.rows is None else []  # as the runs below
    logits, cache = lens.run_with_cache(
        clean, names_filter=names, query_positions=query_positions, logit_positions=of_clean.rows
    )
    assert logits is not None
    value_of_clean = of_clean(logits)
    clean_activations = {name: _moved(cache[name], aligned, (2, 3) if pattern else (1,)) for name in names}
    heads = 1 if by == "position" else clean_activations[names[0]].shape[1 if pattern else 2]
    places = _Places(torch.stack([groups_of_example.of_position for groups_of_example in merged]), chosen, heads)
    setter = _Setter(places.groups, pattern=pattern, one_head=by != "position")
    values: list[Float[Tensor, " example"]] = []

    def metric(logits: Tensor) -> Tensor:
        values.append(of_corrupt(logits))
        return values[-1].mean()

    rows, table = of_corrupt.rows, places.table()
    with torch.no_grad(), nullcontext() if rows is None else lens.logits_only(rows, whole_patterns=pattern):
        begun = perf_counter()
        value_of_corrupt = of_corrupt(model(corrupt))
        announce("activation_patching", len(table), perf_counter() - begun, shorter="groups=, layers=")
        patching.generic_activation_patch(model, corrupt, clean_activations, metric, setter, activation, index_df=table)
    convention = f"clean {activation} into corrupt by {by}, {of_corrupt.in_words}"
    return ActivationPatching(
        values=places.laid_out(values),
        clean=value_of_clean,
        corrupt=value_of_corrupt,
        rounding=torch.maximum(of_clean.scale, of_corrupt.scale) * _rounding(model.cfg),
        groups=places.groups,
        labels=tuple(tuple(groups_of_example.names) for groups_of_example in merged),
        layers=tuple(chosen),
        activation=activation,
        by=by,
        provenance=Provenance.of_model(model, "activation_patching", convention),
    )


class _Measured:
    """The target of some inputs: logits to a number for each example."""

    def __init__(self, lens: Lens, inputs: MultimodalInput, target: Target, position: int) -> None:
        self._examples = len(inputs)
        self.scale = torch.zeros(len(inputs), dtype=torch.float32)
        """Magnitude of what was read first, per example: its largest logit, or the value of the function."""
        self.rows: Int[Tensor, "batch row"] | None = None
        self._of: Callable[[Tensor], Tensor]
        if callable(target):
            self._of, self.in_words = target, "a function of the logits"
        else:
            terms = terms_of(target, position, inputs, lens.tokenizer, lens.model.cfg.d_vocab_out)
            if not terms.is_difference:
                refuse_centred_logits(lens.model, "the logit of a single token (not the difference of two)")
            self._of, self.rows, self.in_words = terms.of, terms.rows, f"logit at position {position}"

    def __call__(self, logits: Float[Tensor, "batch row d_vocab"]) -> Float[Tensor, " example"]:
        values = torch.as_tensor(self._of(logits)).detach().float().cpu().reshape(-1)
        if len(values) not in (1, self._examples):
            raise LensplugError(
                f"the target makes {len(values)} numbers of {self._examples} example(s), expected one, or one for each."
            )
        if bool(values.isnan().any()):
            raise LensplugError("the target is NaN: in fp16 attention scores can overflow; use bfloat16 or float32.")
        values = values.expand(self._examples)
        if not bool(self.scale.any()):
            magnitudes = values if self.rows is None else logits.detach().float().cpu().flatten(1).abs().amax(dim=1)
            self.scale = magnitudes.abs()
        return values


def _rounding(cfg: Any) -> float:
    """The part of the largest logit that rounding explains of a difference."""
    eps = max(torch.finfo(cfg.dtype).eps, torch.finfo(torch.float32).eps)
    return float(eps * (2 * cfg.n_layers + 1) ** 0.5)


@dataclass(frozen=True)
class _Places:
    """Where the clean activation goes: every layer, every group that an example has, every head."""

    groups: Int[Tensor, "example pos"]
    layers: Sequence[int]
    heads: int

    @property
    def _there(self) -> Bool[Tensor, "example group"]:
        """Which groups an example has."""
        numbers = torch.arange(int(self.groups.max()) + 1)
        return (self.groups[:, :, None] == numbers).any(dim=1)

    def table(self) -> pd.DataFrame:
        """One row for each run, as `generic_activation_patch` takes them."""
        import pandas as pd

        groups = self._there.any(dim=0).nonzero()[:, 0].tolist()
        return pd.DataFrame(product(self.layers, groups, range(self.heads)), columns=["layer", "group", "head"])

    def laid_out(self, values: Sequence[Float[Tensor, " example"]]) -> Float[Tensor, "example layer group head"]:
        """What the runs of the table gave; NaN where an example has no such group."""
        is_present = self._there
        shape = (len(is_present), len(self.layers), is_present.shape[1], self.heads)
        table_values = torch.full(shape, torch.nan, dtype=torch.float32)
        table_values[:, :, is_present.any(dim=0)] = torch.stack(list(values), dim=1).view(
            len(is_present), len(self.layers), -1, self.heads
        )
        return table_values.masked_fill(~is_present[:, None, :, None], torch.nan)


@dataclass(frozen=True)
class _Setter:
    """What TransformerLens calls a patch_setter: the clean activation where a group, and a head, is."""

    of_position: Int[Tensor, "example pos"]
    pattern: bool
    one_head: bool

    def __call__(self, corrupted: Tensor, index: Sequence[int], clean: Tensor) -> Tensor:
        _, group, head = index
        at_position, at_head = (2, 1) if self.pattern else (1, 2)
        in_group = (self.of_position == group).to(corrupted.device)
        where = in_group.view(_along(corrupted, 0, at_position))
        if self.one_head:
            heads = torch.arange(corrupted.shape[at_head], device=corrupted.device)
            where = where & (heads == head).view(_along(corrupted, at_head))
        return torch.where(where, clean.to(corrupted), corrupted)


def _along(tensor: Tensor, *axes: int) -> list[int]:
    """Its shape with 1 in place of every axis but these."""
    return [size if axis in axes else 1 for axis, size in enumerate(tensor.shape)]


def _moved(activation: Tensor, aligned: Int[Tensor, "batch pos"], axes: Sequence[int]) -> Tensor:
    """A clean activation rearranged to the positions of the corrupt prompt; 0 at its padding."""
    source_positions = aligned.to(activation.device)
    for axis in axes:
        shape = list(activation.shape)
        shape[axis] = source_positions.shape[1]
        index = source_positions.view([size if dimension in (0, axis) else 1 for dimension, size in enumerate(shape)])
        activation = activation.gather(axis, index.clamp(min=0).expand(shape)).masked_fill(index < 0, 0)
    return activation


def _groups(groups: Merge, by: str, corrupt: Any) -> list[Groups]:
    mask = corrupt.attention_mask.cpu()
    if by == "head":
        if groups is not None:
            raise LensplugError("by='head' patches all positions: leave groups out, or use by='head_and_position'.")
        return [Groups(groups_of_example.long() - 1, ["all positions"]) for groups_of_example in mask]
    merged = position_groups(groups, mask, modality=corrupt.modality.to("cpu"), str_tokens=corrupt.str_tokens)
    patched_groups = [
        groups_of_example.only(real.bool())
        if groups is None
        else Groups(groups_of_example.of_position.masked_fill(real == 0, -1), groups_of_example.names)
        for groups_of_example, real in zip(merged, mask, strict=True)
    ]
    for example, groups_of_example in enumerate(patched_groups):
        if not bool((groups_of_example.of_position >= 0).any()):
            raise LensplugError(f"no position of example {example} is in a group: there is nothing to patch.")
    return patched_groups


def _refuse_bad_options(activation: Activation, by: PatchedPlaces) -> None:
    if by != "position" and activation not in HEADS:
        raise LensplugError(f"{activation!r} has no heads: by='position', or one of {', '.join(map(repr, HEADS))}.")
