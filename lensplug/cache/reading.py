"""Reading an ActivationCache safely: which layers it holds, and with a batch axis."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.errors import LensplugError
from lensplug.patches.modules import attention_in
from lensplug.patches.unseen_keys import UnseenKeys, hidden_from
from lensplug.positions.indices import Positions, counted_from_the_end
from lensplug.positions.modality_map import ModalityMap
from lensplug.reductions import names as hook_names
from lensplug.validation.arguments import whole_number
from lensplug.validation.masks import Mask, as_mask


def n_layers(cache: ActivationCache) -> int:
    """The number of layers of the model that made the cache.

    Raises:
        LensplugError: If there is none: the cache has no model, and holds nothing of any block.
    """
    cfg = getattr(cache.model, "cfg", None)
    if cfg is not None:
        return int(cfg.n_layers)
    layers = [int(match[1]) for name in cache.keys() if (match := re.match(r"blocks\.(\d+)\.", name))]
    if not layers:
        raise LensplugError(
            "the cache holds no layer: run with the names_filter of the analysis (its .needs), or without names_filter."
        )
    return max(layers) + 1


def looks_ahead_within(cache: ActivationCache) -> str | None:
    """The modality whose positions see later ones of their own medium, in the model that made the cache; None: none.

    Gemma 3 lets an image see itself whole; PaliGemma does the "prompt", all but an answer. `lensplug.engines.bridge`
    leaves it on the configuration of such a model, which every cache of it has, those that TransformerLens makes alone
    too.
    """
    within: str | None = getattr(getattr(cache.model, "cfg", None), "looks_ahead_within", None)
    return within


def unseen_by(
    cache: ActivationCache, query: Int[Tensor, " batch"], length: int
) -> dict[int, Bool[Tensor, "batch head key"]]:
    """Layer -> what knockouts kept one query of each example from seeing in the run; one head where all are alike.

    Args:
        cache: Of a lens; one that TransformerLens made alone does not know.
        query: Counted from the left.
        length: The number of positions.
    """
    unseen: Mapping[int, Sequence[UnseenKeys]] = known(cache, "unseen") or {}
    found = {}
    for layer, knockouts in unseen.items():
        rows = query[:, None].to(knockouts[0].queries.device)
        hidden = hidden_from(knockouts, rows, length)[:, :, 0]
        found[layer] = hidden.expand(len(query), -1, -1).to(query.device)
    return found


def layer_index(cache: ActivationCache, layer: int) -> int:
    """A layer counted from 0; negative ones count from the last.

    Raises:
        LensplugError: If it is no whole number, or the model has no such layer.
    """
    layers = n_layers(cache)
    if not -layers <= whole_number(layer, "layer") < layers:
        raise LensplugError(f"layer is {layer}, the model has layers 0 to {layers - 1}.")
    return int(layer % layers)


def read(cache: ActivationCache, name: str, *, needed_by: str) -> Tensor:
    """One activation of the cache, with its batch axis.

    Raises:
        LensplugError: If the cache does not hold it, or it holds NaN.
    """
    value = _held(cache, name, needed_by=needed_by)
    # The sum first, in one pass that makes nothing: it is NaN where a number is (and where infinities cancel).
    if bool(value.sum().isnan()) and bool(value.isnan().any()):
        raise LensplugError(
            f"{name!r} holds NaN: in fp16 attention scores can overflow (lens.check counts it); use bfloat16 or"
            " float32."
        )
    return value


def attention_of_layer(model: Any, layer: int) -> Any:
    """The attention of a layer of a cache's model.

    Raises:
        LensplugError: If the layer mixes positions in another way.
    """
    return attention_in(model, layer)


def _held(cache: ActivationCache, name: str, *, needed_by: str) -> Tensor:
    if name not in cache.cache_dict:
        if ".attn." in name and getattr(cache.model, "blocks", None) is not None:
            attention_in(cache.model, int(name.split(".")[1]))  # a layer that has none is another reason
        raise LensplugError(
            f"{needed_by} needs {name!r}, and the cache does not hold it: run with"
            f" names_filter=analysis.{needed_by}.needs, or without names_filter."
        )
    value: Tensor = cache.cache_dict[name]
    return value if cache.has_batch_dim else value[None]


def read_kept(cache: ActivationCache, name: str) -> Tensor | None:
    """What a reduction kept, with its batch axis; None where there is none."""
    return _held(cache, name, needed_by="") if name in cache.cache_dict else None


def read_pattern(cache: ActivationCache, layer: int, *, needed_by: str) -> Float[Tensor, "batch head query key"]:
    """The attention pattern of one layer, in fp32, square; the rows of attended positions sum to 1.

    Raises:
        LensplugError: If it is not there, is not one row for each position, or holds NaN or rows that do not sum to 1.
    """
    pattern = _held(cache, _pattern(layer), needed_by=needed_by)
    query_positions = known(cache, "query_positions")
    if query_positions is not None:
        raise LensplugError(
            f"the cache holds the patterns of {query_positions.shape[1]} query position(s) only, and {needed_by}"
            " needs every row: run without query_positions, or, for means over heads, with keep='head_mean'."
        )
    if pattern.ndim != 4 or pattern.shape[-1] != pattern.shape[-2]:
        raise LensplugError(
            f"the pattern of layer {layer} has the shape {list(pattern.shape)}, expected [batch, head, pos, pos]:"
            f" {needed_by} needs every row (do not slice positions, and do not generate with a key-value cache)."
        )
    wide: Float[Tensor, "batch head query key"] = pattern.float()
    _refuse_rows(cache, _pattern(layer), wide)
    return wide


def read_head_mean(cache: ActivationCache, layer: int, *, needed_by: str) -> Float[Tensor, "batch query key"]:
    """The mean of one layer's patterns over its heads, in fp32, of a cache that holds it or the patterns.

    Raises:
        LensplugError: If neither is there, or rows do not sum to 1.
    """
    name = hook_names.head_mean(layer)
    if name not in cache.cache_dict:
        return read_pattern(cache, layer, needed_by=needed_by).mean(dim=1)
    mean = _held(cache, name, needed_by=needed_by)
    _refuse_rows(cache, name, mean[:, None])
    return mean


def read_rows(
    cache: ActivationCache, layers: Sequence[int], index: Int[Tensor, "batch row"], *, needed_by: str
) -> Iterator[Float[Tensor, "batch head row key"]]:
    """The attention pattern of each layer for chosen query positions, in fp32, of a cache that holds these rows or all.

    Raises:
        LensplugError: If a pattern is not there, or lacks one of the rows.
    """
    cached_positions = known(cache, "query_positions")
    if cached_positions is None:
        for layer in layers:
            yield _chosen(read_pattern(cache, layer, needed_by=needed_by), index)
        return
    patterns = [_held(cache, _pattern(layer), needed_by=needed_by).float() for layer in layers]
    if patterns:
        index = _among(cached_positions, index, needed_by=needed_by, name="query_positions")
    rows = [_chosen(pattern, index) for pattern in patterns]
    # Looked at together: a small tensor operation for each layer would take longer than all numbers.
    alike = len({(of_layer.device, of_layer.shape) for of_layer in rows}) == 1
    if not alike or bool(_not_one(torch.stack(rows).sum(dim=-1), rows[0].shape[-1]).any()):
        for layer, of_layer in zip(layers, rows, strict=True):
            _refuse_sums(_pattern(layer), of_layer.sum(dim=-1), of_layer.shape[-1])
    yield from rows


def _chosen(
    pattern: Float[Tensor, "batch head query key"], index: Int[Tensor, "batch row"]
) -> Float[Tensor, "batch head row key"]:
    if pattern.shape[2] == index.shape[1] == 1:
        return pattern  # of the only row there is
    row_index = index.to(pattern.device)[:, None, :, None].expand(-1, pattern.shape[1], -1, pattern.shape[3])
    return pattern.gather(2, row_index)


def read_residuals(
    cache: ActivationCache, names: Sequence[str], index: Int[Tensor, "batch position"], *, needed_by: str
) -> Iterator[Float[Tensor, "batch position d_model"]]:
    """The residual stream at each hook and chosen positions, of a cache that holds these or all.

    Raises:
        LensplugError: If one is not there, or lacks one of the positions.
    """
    cached_positions = known(cache, "residual_positions")
    residuals = [_held(cache, name, needed_by=needed_by) for name in names]
    if cached_positions is not None:
        index = _among(cached_positions, index, needed_by=needed_by, name="residual_positions")
    only_one = index.shape[1] == 1 and {residual.shape[1] for residual in residuals} == {1}
    if only_one and len({residual.device for residual in residuals}) == 1:
        # Of the only position there is, and looked at together, as rows of patterns are.
        if not bool(torch.cat(residuals).isnan().any()):
            yield from residuals
            return
    for name in names:
        residual = read(cache, name, needed_by=needed_by)
        yield residual.gather(1, index.to(residual.device)[:, :, None].expand(-1, -1, residual.shape[-1]))


def residual_shape(cache: ActivationCache, *, needed_by: str) -> tuple[int, int]:
    """The number of examples and of positions of the input."""
    residual = _held(cache, "blocks.0.hook_resid_pre", needed_by=needed_by)
    if known(cache, "residual_positions") is None:
        return residual.shape[0], residual.shape[1]
    return residual.shape[0], known(cache, "attention_mask").shape[1]


def _among(
    cached: Int[Tensor, "batch held"], index: Int[Tensor, "batch wanted"], *, needed_by: str, name: str
) -> Int[Tensor, "batch wanted"]:
    """Where the wanted positions are among those that a cache holds."""
    is_same = cached.to(index.device)[:, None, :] == index[:, :, None]
    if not bool(is_same.any(dim=-1).all()):
        raise LensplugError(
            f"{needed_by} reads the positions {index.tolist()}, the cache holds {cached.tolist()}: run with {name}="
            " that"
            " has them, or without it."
        )
    return is_same.int().argmax(dim=-1)


def pattern_shape(cache: ActivationCache, *, needed_by: str) -> tuple[int, int]:
    """The number of examples and of key positions of a cache's patterns, or of the masses kept in their place."""
    n_layers(cache)  # distinguishes an empty cache from one without the pattern
    masses = read_kept(cache, hook_names.modality_mass(0))
    if masses is not None:
        return masses.shape[0], masses.shape[2]
    pattern = _held(cache, "blocks.0.attn.hook_pattern", needed_by=needed_by)
    return pattern.shape[0], pattern.shape[-1]


def attended(
    cache: ActivationCache | None,
    shape: tuple[int, int],
    attention_mask: Mask | None,
    device: torch.device,
    *,
    positions: Positions | None = None,
) -> Int[Tensor, "batch pos"]:
    """Which positions are not padding: as given, else as the cache knows it, else all.

    Args:
        cache: An ActivationCache, or None.
        shape: The number of examples and of positions.
        attention_mask: As it was given.
        device: Where the mask is wanted.
        positions: Those that will be counted by it.

    Raises:
        LensplugError: If the mask is not one row for each example, or positions of a batch count from the last that is
            not padding if that is unknown.
    """
    mask = attention_mask if attention_mask is not None else known(cache, "attention_mask")
    if mask is None and shape[0] > 1 and positions is not None and counted_from_the_end(positions):
        raise LensplugError(
            f"{positions!r} counts from the last position that is not padding, and a cache of {shape[0]} examples that"
            " TransformerLens made alone does not know which that is: give attention_mask= as the model got it"
            " (torch.ones(batch, pos) where nothing is padded), or positions from the left."
        )
    if mask is None:
        return torch.ones(shape, dtype=torch.long, device=device)
    real: Tensor = as_mask(mask, shape, "attention_mask", against="the cache is")
    return real.long().to(device)


def refuse_other_map(cache: ActivationCache, shape: tuple[int, int], modality: ModalityMap) -> None:
    """Raise unless a modality map is of the examples in the cache, as far as the cache can tell: by shape and padding.

    Args:
        cache: An ActivationCache; one that TransformerLens made alone knows no padding.
        shape: The number of its examples and of its positions.
        modality: The map that was given.

    Raises:
        LensplugError: It says in which example they differ.
    """
    of_map = modality.attention_mask
    if tuple(of_map.shape) != tuple(shape):
        raise LensplugError(
            f"the modality map is {list(of_map.shape)}, the cache {list(shape)}: use the map of the inputs that were"
            " run."
        )
    of_cache = known(cache, "attention_mask")
    if of_cache is None or tuple(of_cache.shape) != tuple(shape):
        return
    if not hasattr(cache.model, "blocks") and bool(of_cache.bool().all()):
        return  # of attentions alone, for which no mask was given
    map_padding, cache_padding = of_map.bool().cpu(), of_cache.bool().cpu()
    if not torch.equal(map_padding, cache_padding):
        example = int((map_padding != cache_padding).any(dim=1).nonzero()[0, 0])
        raise LensplugError(
            f"example {example} has {int(of_map[example].sum())} positions that are not padding in the modality map,"
            f" {int(of_cache[example].sum())} in the cache, or others: use the map of the inputs that were run; of a"
            " cache that was sliced, the map of inputs[...] with the same examples in the same order."
        )


def _refuse_rows(cache: ActivationCache, name: str, pattern: Float[Tensor, "batch head query key"]) -> None:
    """Raise unless the rows of attended positions sum to 1.

    For a cache without a padding mask, leading rows of zeros that receive no attention count as padding.

    Raises:
        LensplugError: Then: the pattern holds NaN, or an overflow that TransformerLens turned into zeros.
    """
    sums = pattern.sum(dim=-1)
    mask = known(cache, "attention_mask")
    if mask is None:
        is_padding = (sums == 0).all(dim=1) & (pattern.amax(dim=(1, 2)) == 0)
        mask = is_padding.long().cumprod(dim=1) == 0
    padding = ~mask.bool().to(sums.device)[:, None]
    sums = sums.masked_fill(padding & ~sums.isnan(), 1.0)  # NaN times zero is NaN: not even padding may hold it
    _refuse_sums(name, sums, pattern.shape[-1])


def _not_one(sums: Float[Tensor, ...], keys: int) -> Bool[Tensor, ...]:
    """Where sums of rows are not 1."""
    allowed = torch.finfo(torch.bfloat16).eps + keys * torch.finfo(torch.float32).eps
    return ~((sums - 1).abs() <= allowed)


def _refuse_sums(name: str, sums: Float[Tensor, ...], keys: int) -> None:
    """Raise unless these sums of rows are 1, to what is lost where weights were rounded to bfloat16, and summed."""
    wrong = _not_one(sums, keys)
    if bool(wrong.any()):
        wrong_sum = float(sums[wrong][0])
        problem = (
            "holds NaN" if math.isnan(wrong_sum) else f"has rows that do not sum to 1 (one sums to {wrong_sum:.3g})"
        )
        raise LensplugError(
            f"{name!r} {problem}, {int(wrong.sum())} of {wrong.numel()}: attention scores were NaN or overflowed, as in"
            " fp16, and TransformerLens turns such rows into zeros: use bfloat16 or float32, or query_positions. (Where"
            " a hook has edited the pattern: lensplug.cache_from_attentions(patterns, normalize=True).)"
        )


def _pattern(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_pattern"


def texts_of(
    cache: ActivationCache | None,
    given: Sequence[Sequence[Any]] | None,
    shape: tuple[int, int],
    name: str = "str_tokens",
) -> tuple[tuple[str, ...], ...]:
    """The text of each position: as given, else as it was left on the cache, else "".

    Raises:
        LensplugError: If it is not one text for each position.
    """
    texts = given if given is not None else known(cache, "str_tokens")
    if texts is None:
        return (("",) * shape[1],) * shape[0]
    if len(texts) != shape[0] or any(len(row) != shape[1] for row in texts):
        received = [len(texts), len(texts[0]) if len(texts) else 0]
        raise LensplugError(f"{name} is for {received} positions, the cache is {list(shape)}: give that of its inputs.")
    not_texts = [text for row in texts for text in row if not isinstance(text, str)]
    if not_texts:
        raise LensplugError(
            f"{name} holds a {type(not_texts[0]).__name__}, expected texts: tokenizer.convert_ids_to_tokens(ids)."
        )
    return tuple(tuple(row) for row in texts)
