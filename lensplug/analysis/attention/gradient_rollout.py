"""Gradient-weighted rollout: the positions whose attention raised a logit.

Method:

1. Take the gradient of the target y (a logit, or a logit difference) with respect to every pattern.
2. In each layer: cam_l = E_h[max(∂y/∂A_l ⊙ A_l, 0)], `[query key]` (equation 5 of the paper), the mean over heads.
3. Accumulate: R = I, then for l from first to last R = R + cam_l R (equation 6). R[p, j] is the relevance of input
   position j for output position p; read the row at which the logit was taken.
4. Report R - I: next to the identity's 1, small relevance would be lost.

In causal attention the first position (`<bos>`, the attention sink) is left out: it would dominate nearly every map,
and nothing flows through it that does not end there. Without `normalize`, rows are computed from the last layer down as
vectors, row · (I + cam_last) ⋯ (I + cam_first): one row costs layers x pos², not pos³; all in fp32. The backward pass
comes by the layers in that order: with `keep="gradient_rollout"` it multiplies the rows up itself, and no `pos x pos`
matrix is kept. Gradients are matched to layers by hook name, since layers in the wrong order give another, equally
smooth map.

Paper: Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers", arXiv 2103.15679.

When to use it: for one answer; with the difference of two answers as target it ranked key words best on the trained
text model that we tried.

When not to use it: attention that lowers the logit is dropped, not subtracted; values, MLPs and norms count only
through the gradient; gradients vanish where the model is saturated.

`contributions="signed"` (and "negative") is the effect of an infinitesimal change of attention, *not* what raises and
lowers the answer. On a trained model (Gemma 3 270M, "The secret word is tiger. ... The secret word is") the logit
difference " tiger" - " lion" is -0.7 when nobody attends to the word, 4.4 at half of its attention, 3.9 at all of it:
where the model has more than enough of its cause, slightly less does no harm, and the sign of the gradient turns. The
signed map then ranks the cause last of 148 positions, the positive map first; centering rows or another target changes
little. To find what lowers an answer, delete positions (`deletion_curve`), or use the positive map of the difference of
two answers.

Example:
    logits, grad_cache, grads = lens.run_with_gradients(inputs, target=("Red", "Blue"))
    relevance = analysis.gradient_rollout(grad_cache, grads, rows=-1)
    views.image_overlay(relevance, inputs)    # draws R - I
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.attention.kept_gradient_rollout import ELSE, holds_rows_alone, kept_relevance, product_shape
from lensplug.analysis.attention.left_out import LeftOut, first_is_meant, left_out
from lensplug.analysis.attention.rollout_rows import chosen_rows, row_names, rows_table
from lensplug.analysis.processed_weights import refuse_centred_logits
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import attended, n_layers, read, read_pattern
from lensplug.errors import LensplugError
from lensplug.positions.indices import Positions
from lensplug.reductions import names as hook_names
from lensplug.reductions.cam import SIGNS, weighted
from lensplug.reductions.cam import Contributions as Contributions
from lensplug.validation.arguments import check_example, checked
from lensplug.validation.finite import all_finite
from lensplug.validation.masks import Mask

if TYPE_CHECKING:
    import pandas as pd

Gradients = ActivationCache | Mapping[str, Tensor]
"""Gradients under the names of the hooks that they are of."""


@dataclass(frozen=True, repr=False)
class GradientRollout(Result):
    """How far what each chosen output position holds came from each input position, as the answer depends on it."""

    label_columns = ("example", "row", "pos")
    main_number = "relevance"

    values: Float[Tensor, "example row pos"]
    """R of equation 6, which holds a 1 at the row's own position: `relevance` and the identity."""
    relevance: Float[Tensor, "example row pos"]
    """R - I, which is what is painted, in the unit of the logit that the gradients are of."""
    rows: Int[Tensor, "example row"]
    """The output positions, from the left."""
    provenance: Provenance

    @checked
    def by_position(self, example: int = 0) -> dict[str, Float[Tensor, " pos"]]:
        """The relevance in each output position's row: for overlays."""
        check_example(example, len(self.values))
        return dict(zip(row_names(self.rows[example]), self.relevance[example], strict=True))

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, output position and input position."""
        table = rows_table(self.rows, self.values[:, None])
        table["relevance"] = self.relevance.flatten().double().numpy()
        return table


@needs("attn.hook_pattern")
@checked
def gradient_rollout(
    cache: ActivationCache,
    grads: Gradients,
    *,
    rows: Positions | None = None,
    contributions: Contributions = "positive",
    normalize: bool = False,
    exclude_first: bool | None = None,
    sinks: LeftOut = None,
    attention_mask: Mask | None = None,
) -> GradientRollout:
    """Relevance by equations 5 and 6 of Chefer et al. 2021.

    `values` of the result is R; `relevance` is R - I, which is what is usually painted, from the row at which the
    logit was taken: R alone holds a 1 at the row's own position. Both have the unit of the logit
    that the gradients are of; compare positions of one row, not rows of two prompts. Padding neither gives nor
    receives: its rows and columns of R are those of I.

    Args:
        cache: An ActivationCache with `hook_pattern` of every layer, or what is left of pattern and gradient together
            (`lens.run_with_gradients(..., keep="cam")`), or rows that were multiplied up while gradients were taken
            (`keep="gradient_rollout"`): these rows can be read then, with the options of that reduction.
        grads: The gradients of one scalar with respect to them, under the same names, as an ActivationCache or a
            dict: cache and grads are what `lens.run_with_gradients(inputs, target=...)` returns.
        contributions: "positive": attention that raises the scalar, as in the paper; "negative": that lowers it,
            without the sign; "signed": one minus the other, in each layer: the direction of infinitely small changes,
            which can rank the cause of an answer last (see above).
        rows: Output positions; negative ones count from the last that is not padding. None: all.
        normalize: Equations 8 and 9, which the paper has for models with two streams, after every layer, the last
            included: R becomes (R - I) / S + I, where S is the sum of each row of R - I; a row of zeros stays zeros.
            A row of `relevance` then sums to 1 (or to 0). The cams themselves are not normalised: where gradients are
            far smaller than 1, what the first layers brought is scaled up to 1 and what later layers add is
            small next to it. Costs layers x pos^3 whichever rows are requested.
        exclude_first: Leave out attention to the first position that is not padding. None: in causal attention, where
            it is a rest, and not in attention that looks both ways, where it is one position of all.
        sinks: Positions that are left out in its place: "first"; what `analysis.sinks` found; positions, or a mask
            `[batch pos]`. None: what `exclude_first` says.
        attention_mask: For a padded cache that TransformerLens made alone; the lens's caches carry theirs.

    Raises:
        LensplugError: If a pattern or a gradient is missing or not finite, or their shapes differ, or rows or options
            are asked for that were not kept, or the weights are processed: gradients of centred logits, and of
            patterns without value biases, are others.
    """
    if normalize and contributions == "signed":
        raise LensplugError("rows of signed contributions have no sum to be normalised by: leave normalize out.")
    refuse_centred_logits(cache.model, "gradient_rollout")
    layers = n_layers(cache)
    rows_alone = holds_rows_alone(cache)
    if rows_alone:
        batch, length, device = product_shape(cache)
    else:
        last = _weighted(cache, grads, layers - 1, contributions)
        batch, length, device = last.shape[0], last.shape[-1], last.device
    mask = attended(cache, (batch, length), attention_mask, device, positions=rows)
    index = chosen_rows(rows, mask)
    if sinks is not None and exclude_first is not None:
        raise LensplugError(f"exclude_first={exclude_first} and sinks both say what is left out: give sinks alone.")
    if sinks is None and exclude_first is None:
        exclude_first = getattr(getattr(cache.model, "cfg", None), "attention_dir", "causal") == "causal"
    is_left_out, words = left_out(sinks, mask, first=bool(exclude_first))
    gives = mask.bool() if is_left_out is None else mask.bool() & ~is_left_out

    def cam_of(layer: int) -> Float[Tensor, "batch query key"]:
        """Equation 5 for one layer, without padding, and without the positions that are left out."""
        cam = _weighted(cache, grads, layer, contributions)
        return cam * (mask.bool()[:, :, None] & gives[:, None]).to(cam.device)

    identity = torch.nn.functional.one_hot(index, length).float()
    if rows_alone:
        if sinks is not None and not isinstance(sinks, str):
            raise LensplugError(f"the rows were multiplied with those sinks in them: {ELSE}.")
        relevance = kept_relevance(
            cache, index, mask, contributions=contributions,
            exclude_first=first_is_meant(sinks, bool(exclude_first)), normalize=normalize,
        )  # fmt: skip
    elif normalize:
        relevance = torch.zeros_like(last)
        for layer in range(layers):
            cam = cam_of(layer)
            relevance = relevance + cam + cam @ relevance
            total = relevance.sum(dim=-1, keepdim=True)
            relevance = torch.where(total > 0, relevance / total, 0.0)
        relevance = relevance.gather(1, index[:, :, None].expand(-1, -1, length))
    else:
        relevance = torch.zeros_like(identity)
        for layer in reversed(range(layers)):
            relevance = relevance + (identity + relevance) @ cam_of(layer)
    form = "rows of R - I normalised in each layer" if normalize else "R - I not normalised"
    part = f"{contributions} part of" if contributions != "signed" else "signed (what infinitely small changes do)"
    convention = f"{part} gradient x attention, mean over heads; {form}; {words}"
    return GradientRollout(
        values=(identity + relevance).cpu(),
        relevance=relevance.cpu(),
        rows=index.cpu(),
        provenance=Provenance.of(cache, "gradient_rollout", convention),
    )


def _weighted(
    cache: ActivationCache, grads: Gradients, layer: int, contributions: Contributions
) -> Float[Tensor, "batch query key"]:
    """The mean over heads of gradient x attention: of the part that was kept, else from pattern and gradient."""
    signs = SIGNS if contributions == "signed" else (contributions,)
    names = [hook_names.cam(layer, sign) for sign in signs]
    if all(name in cache.cache_dict for name in names):
        parts = [read(cache, name, needed_by="gradient_rollout") for name in names]
    elif any(hook_names.cam(layer, sign) in cache.cache_dict for sign in SIGNS):
        missing = ", ".join(repr("cam" if sign == "positive" else "cam_negative") for sign in signs)
        raise LensplugError(
            f"contributions={contributions!r} reads what keep=[{missing}] keeps, and the cache does not hold it."
        )
    else:
        pattern = read_pattern(cache, layer, needed_by="gradient_rollout")
        gradient = _gradient(grads, layer, pattern)
        parts = [weighted(pattern, gradient, sign) for sign in signs]
    return parts[0] if len(parts) == 1 else parts[0] - parts[1]


def _gradient(
    grads: Gradients, layer: int, pattern: Float[Tensor, "batch head query key"]
) -> Float[Tensor, "batch head query key"]:
    """The gradient of one layer's pattern, found by its name, in fp32."""
    name = f"blocks.{layer}.attn.hook_pattern"
    tensors = grads if isinstance(grads, Mapping) else grads.cache_dict
    if name not in tensors:
        raise LensplugError(
            f"gradient_rollout needs the gradient of {name!r}, and grads does not hold it: logits, cache, grads ="
            " lens.run_with_gradients(inputs, target=...) gives both, without names_filter or with"
            " names_filter=analysis.gradient_rollout.needs."
        )
    gradient: Tensor = tensors[name]
    gradient = gradient[None] if gradient.ndim == 3 else gradient
    if gradient.shape != pattern.shape:
        raise LensplugError(
            f"the gradient of {name!r} has the shape {list(gradient.shape)}, the pattern {list(pattern.shape)}: give"
            " cache and grads of one run."
        )
    if not all_finite(gradient):
        raise LensplugError(
            f"the gradient of {name!r} holds NaN or infinity: in fp16 gradients can overflow; use bfloat16 or float32."
        )
    return gradient.float().to(pattern.device)
