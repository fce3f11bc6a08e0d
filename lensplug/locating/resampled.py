"""`resampled`: the cross-attention of a resampler, with the places of what it attends to.

Steps.

1. The encoder runs once, attending eagerly; hooks see the probabilities of each cross-attention (`cross_attention`).
2. Where the states that it attends to lie is measured as `locate` measures positions: one stripe of the medium at a
   time is changed, the encoder's own attention off, and the states that move see it.

Which views of a batch belong to a medium is told by counting: each view gives as many positions as there are queries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf.encoder_attention import own_positions_only
from lensplug.hf.language_core import LanguageCore
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.inputs.other_media import with_media
from lensplug.locating.changed_media import axes_of, media_of, stripes_for, with_one_changed
from lensplug.locating.cross_attention import CrossAttention, cross_attentions, keeping_states
from lensplug.locating.intervals import intervals_of
from lensplug.locating.measured_geometry import geometry_of
from lensplug.locating.movements import movements
from lensplug.locating.resampler_attention import ResamplerAttention
from lensplug.positions.modality_map import MediumName


def resampled(
    hf_model: Any,
    core: LanguageCore,
    processor: Any,
    inputs: MultimodalInput,
    *,
    kind: MediumName,
    media_index: int,
    example: int,
    stripes: int | None,
    batch: int,
    progress: Callable[[str], None],
) -> ResamplerAttention:
    """The cross-attention behind the positions of one medium; as `MultimodalLens.resampler_attention`."""
    counts = [len(getattr(inputs.modality, f"{kind}_positions")(index, example)) for index in range(media_index + 1)]
    own = inputs[example : example + 1]
    media = media_of(own, kind)

    def run(versions: list[Any]) -> None:
        with_media(hf_model, core, processor, own, len(versions), with_one_changed(media, media_index, versions, kind))

    progress("the encoder as it is")
    seen = _of_one_resampler(cross_attentions(hf_model, core, partial(run, [media[media_index]])), kind)
    n_queries, n_keys = seen[0].probabilities.shape[-2:]
    n_states, n_views = seen[0].n_states, counts[-1] // n_queries
    if any(count % n_queries for count in counts):
        raise LensplugError(
            f"{kind} {media_index} has {counts[-1]} positions, and {n_queries} queries attend to each view: they do not"
            " belong together, so the attention of a position is not known."
        )
    chosen = slice(sum(counts[:-1]) // n_queries, sum(counts) // n_queries)

    def states_of(versions: list[Any]) -> Float[Tensor, "run state d_encoder"]:
        with keeping_states(seen[0].module, n_keys, n_queries) as kept:
            run(versions)
        of_versions = rearrange(kept[0], "(run view) state d_encoder -> run view state d_encoder", run=len(versions))
        return rearrange(of_versions[:, chosen], "run view state d_encoder -> run (view state) d_encoder").float().cpu()

    axes = axes_of(media[media_index], stripes or stripes_for(kind, n_views * n_states))
    with own_positions_only(hf_model, core):
        moved = movements(states_of, media[media_index], axes, "its states", batch=batch, progress=progress)
    found = [intervals_of(of_axis, axis.edges) for of_axis, axis in zip(moved, axes, strict=True)]
    of_state = torch.arange(n_views).repeat_interleave(n_states)
    none = torch.zeros(len(of_state), dtype=torch.bool)
    probabilities = torch.stack([one.probabilities[chosen, ..., :n_states].float().cpu() for one in seen])
    return ResamplerAttention(
        kind=kind,
        media_index=media_index,
        example=example,
        probabilities=probabilities.transpose(1, 2).flatten(2, 3),
        view=torch.arange(n_views).repeat_interleave(n_queries),
        states=geometry_of(media[media_index], axes, found, none, of_state),
        inputs=inputs,
    )


def _of_one_resampler(seen: list[CrossAttention], kind: MediumName) -> list[CrossAttention]:
    if not seen:
        raise LensplugError(
            f"nothing in the encoder attends across to the {kind}: its positions are not a resampler's. Their places:"
            " inputs.modality, or lens.locate(inputs)."
        )
    shapes = {tuple(one.probabilities.shape) for one in seen}
    if len(shapes) > 1:
        raise LensplugError(
            f"the encoder has several kinds of cross-attention (view, head, query, key: {sorted(shapes)}): which of"
            " them makes the positions is not known. Give a prompt with one kind of medium."
        )
    return seen
