"""Which heads attend to the image, the text or the attention sink: attention mass by modality, layer and head.

Method, for one query position q (by default the last, which predicts the answer):

1. Sum each head's attention over the positions of each class c (modality): mass[l, h, c] = Σ_{k ∈ c} A[l, h, q, k].
2. Chance is the mass under uniform attention: chance[l, c] = |c ∩ visible(q)| / |visible(q)|. What a knockout hides
   from q in a layer is not visible there; where it hides it from some heads only, chance is NaN.
3. Preference is the log-odds beyond chance, in nats: preference = logit(mass) - logit(chance); 0 is uniform.
4. Ratio is mass / chance.

The first position is a class of its own, "sink": many heads put most of their attention there regardless of its content
(Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453).

A prompt has many more image positions than text positions, so a head with uniform attention puts most of its mass on
the image. Hence the three measures (`head_readings`): mass says where a head attends, preference what it attends to
beyond the share of positions.

When to use it: to find candidate heads for one question, before an intervention.

When not to use it: mass says where a head attends, not what it writes (see `ActivationCache.stack_head_results`) and
not what the answer depends on (see `activation_patching`, `modality_ablation`).

Example:
    heads = analysis.head_specialization(cache, inputs.modality, query=-1)
    heads.top("image", k=10)                              # the heads with the largest mass on the image
    heads.top("image", k=10, by="preference")             # and the largest preference beyond chance
    analysis.HeadSpecialization.combine([heads, heads]).by_layer()
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.attention.classes_in_sight import (
    EVERY,
    SinkChoice,
    allowed_positions,
    heads_see_differently,
    parts_of_classes,
    seen,
    seen_ahead,
    sink_positions,
)
from lensplug.analysis.attention.head_readings import CLAMP, CLASSES, SINK, HeadSpecialization
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.cache.reading import n_layers, pattern_shape, read_kept, read_rows, refuse_other_map
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import Modality, modality_of
from lensplug.positions.indices import Position, resolve_position
from lensplug.reductions import names as hook_names
from lensplug.reductions.modality_mass import VIEWS, measure, parts, spread
from lensplug.validation.arguments import checked


@needs("attn.hook_pattern")
@checked
def head_specialization(
    cache: ActivationCache,
    modality: Modality,
    *,
    query: Position = -1,
    sinks: SinkChoice = "first",
    exclude_sink: bool = False,
) -> HeadSpecialization:
    """Attention mass from one query position onto each modality and onto the sink, by layer and head.

    Args:
        cache: An ActivationCache with `hook_pattern` of every layer (`head_specialization.needs`), of every query
            position or of this one, or what each query gives to each modality
            (`lens.run_with_cache(..., keep="modality_mass")`).
        modality: Which position is what: `inputs.modality`, or the inputs.
        query: The position that looks, or one for each example; negative ones count from the last that is not padding.
        sinks: Which positions are a class of their own, "sink", and no longer count with their modality: "first",
            the first that is not padding; "special", the tokenizer's special tokens too; what `analysis.sinks` found;
            positions, or a mask `[batch pos]`; None, no position.
        exclude_sink: Leave the sinks out, and read the rest of the row as if it were all: the masses are
            fractions of the attention that is not on a sink.

    Raises:
        LensplugError: If a pattern is missing, the map does not fit the cache, the position is out of
            range, or sinks have another form.
    """
    modality = modality_of(modality)
    mask, shape = modality.attention_mask, pattern_shape(cache, needed_by="head_specialization")
    refuse_other_map(cache, shape, modality)
    sink_mask, sink_note = sink_positions(sinks, mask, exclude_sink)
    index = resolve_position(query, mask, name="query")
    ahead = seen_ahead(cache, modality, index)
    member = parts(modality, sink_mask)
    is_present = (member & (seen(cache, mask, index) | ahead)[:, None]).any(dim=-1).cpu()  # [example part]
    parts_of_class = parts_of_classes(modality, sinks)
    in_sight = (parts_of_class & is_present[:, None]).any(dim=-1).any(dim=0).tolist()
    names, views = (tuple(name for name in order if in_sight[EVERY.index(name)]) for order in (CLASSES, VIEWS))
    names = tuple(name for name in names if not (exclude_sink and name == SINK))
    if not names:
        raise LensplugError(f"from query {query} nothing but the sink is in sight, and it is left out.")
    part_attention = _given(cache, index, member, usual=sink_mask is None)
    allowed = allowed_positions(cache, mask, index, ahead)
    count = (member[:, None] & allowed[:, :, None]).sum(dim=-1).cpu()
    chosen = parts_of_class[:, [EVERY.index(name) for name in (*names, *views)]]
    mass, chance, entropy, largest, view_mass, view_chance = _readings(
        part_attention, count, chosen[:, : len(names)], chosen[:, len(names) :]
    )
    cut_apart = heads_see_differently(cache, mask, index)
    for of_layers in (chance, view_chance):
        of_layers[:, cut_apart] = torch.nan
    note = f"; no chance in layers {cut_apart}, of which a knockout cuts some heads and not others" if cut_apart else ""
    convention = (
        f"fraction of the query's attention; {sink_note}; preference in nats over chance (uniform over allowed"
        " positions),"
        f" clamped at {CLAMP:g}; averages of each example's own readings{note}"
    )
    provenance = Provenance.of(cache, "head_specialization", convention, query=query)
    return HeadSpecialization(
        mass, chance, entropy, largest, names, index.cpu(), provenance,
        views, view_mass if views else None, view_chance if views else None,
    )  # fmt: skip


def _given(
    cache: ActivationCache, index: Int[Tensor, " batch"], member: Bool[Tensor, "batch part pos"], *, usual: bool
) -> Float[Tensor, "batch layer head part 3"]:
    """What the query gives to each part, as `modality_mass.measure` has it: as kept, or of its row of the pattern.

    In double precision, on the processor. The heads of all layers are measured at once.
    """
    masses: dict[int, Tensor] = {}
    for layer in range(n_layers(cache)):
        cached_mass = read_kept(cache, hook_names.modality_mass(layer))
        if cached_mass is None or (not usual and f"blocks.{layer}.attn.hook_pattern" in cache.cache_dict):
            continue
        row_index = index.to(cached_mass.device)[:, None, None, None, None]
        row_index = row_index.expand(-1, cached_mass.shape[1], -1, *cached_mass.shape[3:])
        masses[layer] = cached_mass.gather(2, row_index)[:, :, 0]
    with_patterns = [layer for layer in range(n_layers(cache)) if layer not in masses]
    patterns = read_rows(cache, with_patterns, index[:, None], needed_by="head_specialization")
    rows = dict(zip(with_patterns, patterns, strict=True))
    part_attention: dict[int, Tensor] = {}
    if rows:
        row = _side_by_side(rows)
        part_attention |= zip(
            rows, measure(row, member.to(row.device))[:, :, 0].cpu().chunk(len(rows), dim=1), strict=True
        )
    if masses:
        spread_mass = spread(_side_by_side(masses), known(cache, "modality_parts").to(member.device), member)
        if spread_mass is None:
            raise LensplugError(
                "the cache's masses are of another modality map: use the map of the inputs that were run."
                if usual
                else "the cache holds masses by modality, and a mask of sinks needs the query's rows: run with"
                " query_positions= too."
            )
        part_attention |= zip(masses, spread_mass.cpu().chunk(len(masses), dim=1), strict=True)
    return torch.stack([part_attention[layer] for layer in range(n_layers(cache))], dim=1)


def _side_by_side(layers: dict[int, Tensor]) -> Float[Tensor, "batch heads *rest"]:
    """The heads of several layers after each other, in double precision, on one device."""
    device = next(iter(layers.values())).device
    return torch.cat([layer_mass.to(device) for layer_mass in layers.values()], dim=1).double()


def _readings(
    part_attention: Float[Tensor, "example layer head part 3"],
    count: Int[Tensor, "example layer part"],
    classes: Bool[Tensor, "example modality part"],
    views: Bool[Tensor, "example view part"],
) -> tuple[Tensor, ...]:
    """Mass, chance, entropy and largest weight of each layer, then mass and chance of the views; in double precision.

    Chance is a quotient of counts, and so is the mass of a uniform row over the row's sum: in double
    precision their ratio rounds to exactly 1.
    """
    within = part_attention[:, :, :, None] * classes[:, None, None, :, :, None]  # [example layer head modality part 3]
    weight, information = within[..., 0].sum(dim=-1), within[..., 1].sum(dim=-1)
    counted = (count[:, :, None] * classes[:, None]).sum(dim=-1)
    absent = (counted == 0)[:, :, None].expand(weight.shape)
    # The entropy of the shares p / m is log m minus the mean of log p.
    entropy = (weight.log() - information / weight).clamp(min=0)
    total_mass, all_counted = weight.sum(dim=-1, keepdim=True), counted.sum(dim=-1, keepdim=True)
    of_view = (part_attention[:, :, :, None, :, 0] * views[:, None, None]).sum(dim=-1)
    counted_views = (count[:, :, None] * views[:, None]).sum(dim=-1)
    hidden, undefined = counted_views == 0, torch.nan
    return (
        (weight / total_mass).masked_fill(absent, undefined),
        (counted.double() / all_counted).masked_fill(counted == 0, undefined),
        entropy.masked_fill(absent | (weight == 0), undefined),
        (within[..., 2].amax(dim=-1) / total_mass).masked_fill(absent, undefined),
        (of_view / total_mass).masked_fill(hidden[:, :, None].expand(of_view.shape), undefined),
        (counted_views.double() / all_counted).masked_fill(hidden, undefined),
    )
