"""Gradient rollout of a few rows, as `keep="gradient_rollout"` multiplied it: reading it for the options it is of."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.cache.reading import read, read_kept
from lensplug.errors import LensplugError
from lensplug.reductions import names as hook_names
from lensplug.validation.arguments import described

ELSE = 'keep="cam" keeps what every row and every option is made from'


def holds_rows_alone(cache: ActivationCache) -> bool:
    """Whether products of some rows were kept, and neither patterns nor their cams, which any row can be made from."""
    whole = ("attn.hook_pattern", "attn.cam_positive", "attn.cam_negative")
    names = [str(name) for name in cache.cache_dict]
    return any(map(_is_product, names)) and not any(name.endswith(whole) for name in names)


def product_shape(cache: ActivationCache) -> tuple[int, int, torch.device]:
    """The number of examples and of positions, and where the products are."""
    product = read_kept(cache, next(filter(_is_product, cache.cache_dict)))
    assert product is not None
    return product.shape[0], product.shape[-1], product.device


def kept_relevance(
    cache: ActivationCache,
    index: Int[Tensor, "batch row"],
    mask: Int[Tensor, "batch pos"],
    *,
    contributions: str,
    exclude_first: bool,
    normalize: bool,
) -> Float[Tensor, "batch row key"]:
    """R - I at these rows.

    Args:
        cache: With a product of some rows.
        index: The rows, from the left.
        mask: 1 where there is no padding.
        contributions: What of gradient x attention is meant.
        exclude_first: Whether the first position is left out.
        normalize: Whether rows are to be normalised in every layer.

    Raises:
        LensplugError: If other rows or options were kept.
    """
    if normalize:
        raise LensplugError(
            f"normalize needs the sums of every row of R in every layer, and the cache holds some rows: {ELSE}."
        )
    name = hook_names.gradient_rollout(contributions, exclude_first)
    if name not in cache.cache_dict:
        kept = ", ".join(sorted(map(repr, filter(_is_product, cache.cache_dict))))
        raise LensplugError(
            f"the cache holds {kept}, made with other options than contributions={contributions!r} and"
            f" exclude_first={exclude_first}: run with keep=lensplug.reductions.GradientRolloutRows("
            f"contributions={contributions!r}, exclude_first={exclude_first}); {ELSE}."
        )
    cached_mask = known(cache, "attention_mask")
    if cached_mask is not None and not torch.equal(cached_mask.bool().to(mask.device), mask.bool()):
        raise LensplugError(f"the rows were made with the padding of the run, and attention_mask is another: {ELSE}.")
    product = read(cache, name, needed_by="gradient_rollout")
    rows = read(cache, hook_names.rows_of(name), needed_by="gradient_rollout")
    is_same = rows[:, None, :] == index.to(rows.device)[:, :, None]
    is_kept = is_same.any(dim=-1)
    if not bool(is_kept.all()):
        example, place = (~is_kept).nonzero()[0].tolist()
        raise LensplugError(
            f"rows has position {int(index[example, place])} of example {example}, and the cache holds the rows of"
            f" {described(rows[example].tolist())}: give rows= of these, or run with"
            f" keep=lensplug.reductions.GradientRolloutRows(rows=...); {ELSE}."
        )
    place = is_same.int().argmax(dim=-1).to(product.device)
    return product.gather(1, place[:, :, None].expand(-1, -1, product.shape[2]))


def _is_product(name: str) -> bool:
    return name.startswith(hook_names.GRADIENT_ROLLOUT) and not name.endswith(hook_names.rows_of(""))
