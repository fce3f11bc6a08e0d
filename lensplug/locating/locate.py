"""`locate`: where the positions of a medium lie, found by changing parts of it, for a family that nobody described.

Steps.

1. The medium is cut into stripes along each of its sides (`changed_media`). Each is changed by itself, in the medium,
   before the processor, and the model's own processor and encoder make the embeddings again.
2. That happens with the encoder's attention off (`lensplug.hf.encoder_attention`): how far each position moved says
   which stripes it sees (`intervals`).
3. And with the attention as it is: how much of its movement comes from elsewhere is the *blur*.
4. The intervals become a grid, a video grid or a timeline (`measured_geometry`).

What it cannot see: a place for positions that hold a mixture of the whole medium (those of a resampler or a Q-Former
have none, and get NaN), and the order of views that show the same part at the same size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf.encoder_attention import own_positions_only
from lensplug.hf.language_core import LanguageCore
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.inputs.other_media import with_media
from lensplug.locating.changed_media import Axis, axes_of, media_of, stripes_for, with_one_changed
from lensplug.locating.intervals import Intervals, intervals_of, share_inside
from lensplug.locating.located import Geometry, Located
from lensplug.locating.measured_geometry import geometry_of
from lensplug.locating.movements import movements
from lensplug.positions.modality_map import MediumName

ONE_PLACE = 0.25
"""A position of which less of its movement comes from one place has none."""
NEARLY_ALL = 0.9
"""A position that sees this much of each side sees all of a medium."""
GEOMETRIES: dict[MediumName, str] = {"image": "grids", "video": "video_grids", "audio": "timelines"}
"""Where a `ModalityMap` keeps the geometry of a kind of medium."""


def locate(
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
) -> Located:
    """Measure the places of the positions of one medium; as `MultimodalLens.locate`."""
    positions = getattr(inputs.modality, f"{kind}_positions")(media_index, example)
    own = inputs[example : example + 1]
    media = media_of(own, kind)
    axes = axes_of(media[media_index], stripes or stripes_for(kind, len(positions)))

    def embeds_of(versions: list[Any]) -> Float[Tensor, "run token d_model"]:
        given = with_one_changed(media, media_index, versions, kind)
        variant = with_media(hf_model, core, processor, own, len(versions), given)
        return variant.embeds[:, positions].float().cpu()

    moved = partial(movements, embeds_of, media[media_index], axes, batch=batch, progress=progress)
    with own_positions_only(hf_model, core):
        alone = moved("the encoder's attention off")
    together = moved("the encoder as it is")
    if not any(bool(of_axis.any()) for of_axis in alone):
        raise LensplugError(f"no position of {kind} {media_index} moves when it is changed: are the weights loaded?")
    found = [intervals_of(of_axis, axis.edges) for of_axis, axis in zip(alone, axes, strict=True)]
    concentration = torch.stack([side.concentration for side in found]).amin(dim=0)
    of_place = [share_inside(of_axis, side.inside) for of_axis, side in zip(together, found, strict=True)]
    is_mixture = (concentration < ONE_PLACE) | _sees_all(axes[:2], found[:2])
    _refuse_mixtures(kind, is_mixture)
    geometry = geometry_of(media[media_index], axes, found, is_mixture)
    return Located(
        kind=kind,
        media_index=media_index,
        example=example,
        geometry=geometry,
        known=getattr(inputs.modality, GEOMETRIES[kind]).get((example, media_index)),
        resolution={axis.name: axis.resolution for axis in axes},
        concentration=concentration,
        blur=1 - torch.stack(of_place).amin(dim=0),
        attention_off=not all(torch.allclose(*both, rtol=1e-3) for both in zip(alone, together, strict=True)),
        runs=2 * (1 + sum(map(len, axes))),
        inputs=_with_geometry(inputs, kind, (example, media_index), geometry),
    )


def _sees_all(axes: list[Axis], found: list[Intervals]) -> Bool[Tensor, " token"]:
    """Positions that see the whole medium (every frame of a video), where there are several such."""
    whole = [
        side.stop - side.start >= NEARLY_ALL * (axis.edges[-1] - axis.edges[0])
        for axis, side in zip(axes, found, strict=True)
    ]
    sees_all = torch.stack(whole).all(dim=0)
    return sees_all if int(sees_all.sum()) > 1 else torch.zeros_like(sees_all)


def _refuse_mixtures(kind: MediumName, is_mixture: Bool[Tensor, " token"]) -> None:
    """A resampler's positions see all of a medium."""
    n_mixtures, n_positions = int(is_mixture.sum()), len(is_mixture)
    if 2 * n_mixtures > n_positions:
        raise LensplugError(
            f"{n_mixtures} of {n_positions} {kind} positions have no one place: what moves them comes from all over the"
            f" {kind}, as of the positions of a resampler or a Q-Former. Ask which parts of it matter instead:"
            " analysis.region_attribution."
        )


def _with_geometry(
    inputs: MultimodalInput, kind: MediumName, place: tuple[int, int], geometry: Geometry
) -> MultimodalInput:
    name = GEOMETRIES[kind]
    geometries: dict[str, Any] = {name: {**getattr(inputs.modality, name), place: geometry}}
    return replace(inputs, modality=replace(inputs.modality, **geometries))
