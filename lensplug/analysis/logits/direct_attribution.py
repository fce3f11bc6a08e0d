"""Direct logit attribution: what each component, and each head from each source, writes directly into a logit.

Method, at the position p whose logit is read:

1. The residual stream at the end is a sum: x_p = embedding + Σ_l (attention_l + MLP_l), and an attention layer a sum
   over heads h and keys k: Σ_h Σ_k A[h, p, k] v[h, k] W_O[h], and its output bias b_O. Where layers add features of the
   image to the stream (Qwen3-VL) or per-layer inputs (Gemma 4), these are terms too; where a layer multiplies the
   stream at its end (Gemma 4), every earlier term is what is left of it.
2. Freeze the final norm at the statistics of x_p. It is then linear, and the logit of a token t, or the difference of
   two, is read along one direction: d = (W_U[:, t] · w) / scale(x_p), for LayerNorm less its mean; w is the norm's
   weight.
3. A component c writes c · d; a head from a key A[h, p, k] · (v[h, k] W_O[h] · d); a neuron its activation times
   W_out · d. Where a norm follows attention or MLP (Gemma 3), it is frozen likewise.
4. With the biases (b_O, b_out, those of the final norm and the unembedding) these add up to the logit. The sum is
   compared with the model's own number; what does not add up within rounding is refused.

Values are logits. What the model added to the stream is the difference of two states of it, so that "by layer" holds
in every dtype; value biases belong to their heads, whether processing has folded them or not.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (transformer-circuits.pub); Wang et al.
2023, "Interpretability in the Wild", arXiv 2211.00593 (direct effects of heads on a logit difference).

When to use it: to see which layers and heads write an answer, and from which patches or moments they copy it. Prefer a
difference of two logits: a number that all logits share changes no answer.

When not to use it: for effects through later layers, which are often larger: an early head that moves the color to
where a later head reads it writes nothing directly (`activation_patching`). A frozen norm leaves out that a component
also changes the scale. Where a model squeezes its logits into a range (Gemma 2), the numbers are of the logit before
that.

What a run must keep depends on `by`: give it a `functools.partial` of this analysis with the same `by`. Of the stream
and of patterns one position is enough. `by="neuron"` needs the neurons of all positions.

Example:
    from functools import partial
    needs = partial(analysis.direct_attribution, by="source")
    _, cache = lens.run_with_cache(inputs, needs=needs, query_positions=[-1], residual_positions=[-1])
    written = analysis.direct_attribution(cache, ("Red", "Blue"), inputs.modality, by="source")
    written.top(5)                                   # (layer, head, logits), the strongest first
    written.by_modality()["image"]                   # [example layer head], in logits
    views.image_overlay(written, inputs)             # which patches speak for "Red", which for "Blue"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.attention.classes_in_sight import EVERY, SinkChoice, parts_of_classes, sink_positions
from lensplug.analysis.attention.head_readings import CLASSES
from lensplug.analysis.logits import block_writes
from lensplug.analysis.logits.direct_attribution_result import By, DirectAttribution
from lensplug.analysis.logits.stream_writes import TERMS, StreamWrites, read_stream
from lensplug.analysis.logits.target_of_cache import terms_of_cache, texts_of_target
from lensplug.analysis.logits.unembedding import frozen_reading, model_of, normalised, soft_cap
from lensplug.analysis.processed_weights import may_have_folded_values, refuse_centred_logits
from lensplug.analysis.protocols import needs_with
from lensplug.analysis.provenance import Provenance
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import n_layers, refuse_other_map, residual_shape
from lensplug.errors import LensplugError
from lensplug.inputs.logit_targets import LogitTarget, Terms
from lensplug.positions.by_modality import Modality, modality_of
from lensplug.positions.indices import Position
from lensplug.positions.modality_map import ModalityMap
from lensplug.reductions.modality_mass import parts
from lensplug.validation.arguments import checked
from lensplug.validation.masks import Mask

NAME = "direct_attribution"
STREAM = ("hook_resid_pre", "hook_resid_mid", *TERMS, "hook_resid_post")
ENDINGS: dict[By, tuple[str, ...]] = {
    "layer": STREAM,
    "head": (*STREAM, "attn.hook_pattern", "attn.hook_v"),
    "source": (*STREAM, "attn.hook_pattern", "attn.hook_v"),
    "modality": (*STREAM, "attn.hook_pattern", "attn.hook_v"),
    "neuron": (*STREAM, "mlp.hook_post"),
}
"""The hooks that are read."""
SUMS_WITHIN = 1e-4
"""Logits by which the sum may miss the logit in any dtype."""
ROUNDING = 4.0
"""Times eps and the root of the sum of squares of what is rounded. Rounding to the nearest errs by at most eps / 2,
with a standard deviation of 0.29 eps; two roundings of each product, at ten standard deviations."""


@checked
def _reads(*, by: By = "layer", **others: Any) -> Callable[[str], bool]:
    """Whether a hook is read, by its name, with these options of `direct_attribution`."""
    endings = ENDINGS[by]
    return lambda name: name.endswith(endings)


@needs_with(_reads)
@checked
def direct_attribution(
    cache: ActivationCache,
    target: LogitTarget,
    modality: Modality | None = None,
    *,
    by: By = "layer",
    position: Position = -1,
    sinks: SinkChoice = "first",
    attention_mask: Mask | None = None,
) -> DirectAttribution:
    """What the components of a model write directly into a logit, or a difference of two.

    Args:
        cache: An ActivationCache with the residual stream before, within and after every block, at least at
            `position`, and, by head or source, `hook_v` and the pattern's row there (of heads `hook_z` will do), by
            neuron `mlp.hook_post`; and its model.
        target: A word that is one token, an id, ids `[example]`; a pair of them, for the difference; or an answer,
            whose tokens' logits are added up (run on `answer.inputs`).
        modality: `inputs.modality`, or the inputs: which position is what. Needed by "modality"; by "source" it adds
            `by_modality`.
        by: "layer" (attention and MLP of each), "head", "neuron"; "source": heads from each key position; "modality":
            heads from each modality.
        position: Where the logit is read: the place before the token's own, the same for every example or one for
            each; negative ones count from the last that is not padding.
        sinks: Which positions are a class of their own, "sink", by modality: "first", "special", a mask or None, as in
            `head_specialization`.
        attention_mask: For a padded cache that TransformerLens made alone; the lens's caches carry theirs.

    Raises:
        LensplugError: If an activation is missing, the target is not one token, the map is another batch's, or the sum
            misses the logit by more than rounding explains: a hook has edited an activation, say. And for one logit of
            weights whose unembedding was centred by processing.
    """
    model = model_of(cache, needed_by=NAME)
    _refuse_missing(cache, by)
    shape = residual_shape(cache, needed_by=NAME)
    terms = terms_of_cache(cache, target, position, shape, attention_mask)
    if not terms.is_difference:
        refuse_centred_logits(model, "the logit of a single token (not the difference of two)")
    modality_map = _map(cache, modality, shape, by)
    with torch.no_grad():
        columns, output_bias = _columns(model, terms)
        stream = read_stream(cache, terms.rows, needed_by=NAME, like=columns)
        reading = frozen_reading(model, stream.last, columns)
        rounding = stream.squares(reading.direction)
        values, others, sources, squares = _components(cache, by, terms.rows, stream, reading.direction)
        others |= {"ln_final.b": reading.norm_bias.sum(dim=1), "unembed.b_U": output_bias}
        last = normalised(model, stream.last_as_cached.flatten(0, 1)).view(columns.shape).to(columns)
        logit = (last * columns).cpu().double().sum(dim=(1, 2)) + output_bias.cpu()
    other_values = torch.stack([value.double().cpu() for value in others.values()], dim=1)
    eps = torch.finfo(stream.last_as_cached.dtype).eps
    tolerance = (ROUNDING * eps * (rounding + squares).sqrt()).clamp(min=SUMS_WITHIN).cpu()
    total = values.double().sum(dim=(1, 2)) + other_values.sum(dim=1)
    _refuse_what_does_not_sum(total, logit, tolerance, by)
    classes, masses = _masses(sources, modality_map, sinks)
    return DirectAttribution(
        values=values.float(),
        others=other_values.float(),
        other_names=tuple(others),
        logit=logit.float(),
        tolerance=tolerance.float(),
        rows=terms.rows.cpu(),
        target_texts=texts_of_target(terms, getattr(model, "tokenizer", None)),
        by=by,
        provenance=Provenance.of(
            cache, NAME, _convention(model, by), query=position, options={"target": _in_words(target), "by": by}
        ),
        sources=sources.float() if sources is not None and by == "source" else None,
        masses=masses,
        modalities=classes,
    )


def _refuse_missing(cache: ActivationCache, by: By) -> None:
    """Say what to run with where what is read by heads, sources or neurons is not there."""
    if by == "head" and "blocks.0.attn.hook_z" in cache.cache_dict:
        return
    for ending in ENDINGS[by][len(STREAM) :]:
        if (name := f"blocks.0.{ending}") not in cache.cache_dict and not getattr(cache.model.cfg, "attn_only", False):
            raise LensplugError(
                f"{NAME} by {by} needs {name!r}, and the cache does not hold it: run with"
                f" needs=partial(analysis.{NAME}, by={by!r}), or without names_filter."
            )


def _map(cache: ActivationCache, modality: Modality | None, shape: tuple[int, int], by: By) -> ModalityMap | None:
    if modality is None:
        if by == "modality":
            raise LensplugError("by='modality' needs to know which position is what: give inputs.modality.")
        return None
    modality_map = modality_of(modality)
    refuse_other_map(cache, shape, modality_map)
    return modality_map


def _columns(model: Any, terms: Terms) -> tuple[Float[Tensor, "example row d_model"], Float[Tensor, " example"]]:
    """The weighted sum of columns of W_U that each row is read by, and of the unembedding's bias, over the rows."""
    unembed = model.unembed
    W_U, b_U = unembed.W_U.detach(), unembed.b_U.detach()
    ids, weights = terms.ids.to(W_U.device), terms.weights.to(W_U.device)
    wide = torch.promote_types(W_U.dtype, torch.float32)
    columns = W_U[:, ids].to(wide)  # [d_model example row term]
    return (columns * weights).sum(dim=-1).permute(1, 2, 0), (b_U[ids].to(wide) * weights).sum(dim=(1, 2))


def _components(
    cache: ActivationCache,
    by: By,
    rows: Int[Tensor, "example row"],
    stream: StreamWrites,
    directions: Float[Tensor, "example row d_model"],
) -> tuple[Tensor, dict[str, Tensor], Tensor | None, Tensor]:
    """Values `[example layer component]`, all other terms by name, heads' sources, and squares of what was rounded."""
    shares = stream.written(directions)
    embedding, attention, mlp = shares.embedding, shares.attention, shares.mlp
    others = {"embed": embedding, **shares.added}
    if by == "layer":
        return torch.stack([attention, mlp], dim=2), others, None, torch.zeros_like(embedding)
    write = {"head": block_writes.heads, "neuron": block_writes.neurons}.get(by, block_writes.sources)
    layers = range(n_layers(cache))
    written = [write(cache, layer, rows, directions, needed_by=NAME) for layer in layers]
    beside, bias = (attention, "b_out") if by == "neuron" else (mlp, "b_O")
    name = "attn_out" if by == "neuron" else "mlp_out"
    others |= {f"{layer}_{name}": beside[:, layer] for layer in layers}
    others |= {f"{layer}_{bias}": written[layer].bias for layer in layers}
    written = [of_layer.times(left) for of_layer, left in zip(written, stream.left, strict=False)]
    widths = [of_layer.parts.shape[1] for of_layer in written]
    if len(set(widths)) > 1:
        raise LensplugError(
            f"by {by!r} a result has an axis of components, and layers of this model have {widths} of them: use"
            " by='layer'."
        )
    parts_written = torch.stack([of_layer.parts.cpu() for of_layer in written], dim=1)
    squares = torch.stack([of_layer.squares for of_layer in written]).sum(dim=0).to(embedding)
    if by in ("source", "modality"):
        return parts_written.double().sum(dim=-1), others, parts_written, squares
    return parts_written, others, None, squares


def _masses(
    sources: Float[Tensor, "example layer head source"] | None, modality: ModalityMap | None, sinks: SinkChoice
) -> tuple[tuple[str, ...], Float[Tensor, "example layer head modality"] | None]:
    """What comes from each class of positions that occurs; NaN where an example has none."""
    if sources is None or modality is None:
        return (), None
    sink_mask, _ = sink_positions(sinks, modality.attention_mask, exclude_sink=False)
    member = parts(modality, sink_mask)
    of_classes = parts_of_classes(modality, sinks)[:, [EVERY.index(name) for name in CLASSES]]
    belongs: Bool[Tensor, "example modality pos"] = (of_classes.to(member.device).float() @ member.float()) > 0
    is_present = belongs.any(dim=-1)
    chosen = is_present.any(dim=0).nonzero()[:, 0]
    belongs, is_present = belongs[:, chosen].cpu(), is_present[:, chosen].cpu()
    masses = torch.einsum("elhk,emk->elhm", sources.double(), belongs.double())
    masses = masses.masked_fill(~is_present[:, None, None], torch.nan)
    return tuple(CLASSES[index] for index in chosen.tolist()), masses.float()


def _refuse_what_does_not_sum(
    total: Float[Tensor, " example"], logit: Float[Tensor, " example"], tolerance: Float[Tensor, " example"], by: By
) -> None:
    wrong = ~((total - logit).abs() <= tolerance)
    if bool(wrong.any()):
        example = int(wrong.nonzero()[0, 0])
        raise LensplugError(
            f"by {by} the components of example {example} sum to {float(total[example]):.5g}, and the logit is"
            f" {float(logit[example]):.5g}: rounding explains a difference of {float(tolerance[example]):.2g}. A hook"
            " has edited an activation in this run, the model adds to the stream what is not known here, or its"
            " quantised layers round what they are given (int8): run without the hook, or take by='layer' (where heads"
            " were ablated by='head', of a cache that holds hook_z)."
        )


def _convention(model: Any, by: By) -> str:
    cap = soft_cap(model)
    said = ["logits; final norm frozen at the statistics of the position"]
    if cap is not None:
        said.append(f"of the logit before the soft cap of {cap:g}")
    if by not in ("layer", "neuron") and any(
        may_have_folded_values(model, layer) for layer in range(model.cfg.n_layers)
    ):
        said.append("value biases, folded by processing, are in b_O")
    return "; ".join(said)


def _in_words(target: LogitTarget) -> str:
    """A target as provenance records it; ids of examples differ, and the result has their texts."""
    if isinstance(target, tuple):
        return " - ".join(_in_words(token) for token in target)
    if isinstance(target, str | int):
        return repr(target)
    return "one for each example" if isinstance(target, Tensor) else "an answer"
