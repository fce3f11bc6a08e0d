"""Reading an ActivationCache safely: which layers it holds, and with a batch axis."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug import hook_names
from lensplug.errors import LensplugError

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


@runtime_checkable  # the tests check annotations while the code runs
class Analysis(Protocol[P, R_co]):
    """A function of a cache that says which hooks it reads."""

    needs: Callable[[str], bool]
    """For `names_filter`: keeps what the analysis reads, nothing else."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Analyse."""


def needs(*endings: str) -> Callable[[Callable[P, R_co]], Analysis[P, R_co]]:
    """Mark an analysis with the hooks that it reads: those whose names end so, in every layer."""

    def mark(function: Callable[P, R_co]) -> Analysis[P, R_co]:
        analysis = cast("Analysis[P, R_co]", function)
        analysis.needs = lambda name: name.endswith(endings)
        return analysis

    return mark


def n_layers(cache: Any) -> int:
    """The number of layers of the model that made the cache.

    Raises:
        LensplugError: If there is none: the cache has no model, and holds nothing of any block.
    """
    cfg = getattr(cache.model, "cfg", None)
    if cfg is not None:
        return int(cfg.n_layers)
    found = [int(match[1]) for name in cache.keys() if (match := re.match(r"blocks\.(\d+)\.", name))]
    if not found:
        raise LensplugError(
            "the cache holds no layer: run with the names_filter of the analysis (its .needs), or without names_filter."
        )
    return max(found) + 1


def layer_index(cache: Any, layer: int) -> int:
    """A layer counted from 0; negative ones count from the last.

    Raises:
        LensplugError: If the model has no such layer.
    """
    layers = n_layers(cache)
    if not -layers <= layer < layers:
        raise LensplugError(f"layer is {layer}, the model has layers 0 to {layers - 1}.")
    return int(layer % layers)


def read(cache: Any, name: str, *, needed_by: str) -> Tensor:
    """One activation of the cache, with its batch axis.

    Raises:
        LensplugError: If the cache does not hold it, or it holds NaN.
    """
    value = _held(cache, name, needed_by=needed_by)
    if bool(value.isnan().any()):
        raise LensplugError(
            f"{name!r} holds NaN: in fp16 attention scores can overflow (lens.check counts it); use bfloat16 or"
            " float32."
        )
    return value


def _held(cache: Any, name: str, *, needed_by: str) -> Tensor:
    if name not in cache.cache_dict:
        raise LensplugError(
            f"{needed_by} needs {name!r}, and the cache does not hold it: run with"
            f" names_filter=analysis.{needed_by}.needs, or without names_filter."
        )
    value: Tensor = cache.cache_dict[name]
    return value if cache.has_batch_dim else value[None]


def read_pattern(cache: Any, layer: int, *, needed_by: str) -> Float[Tensor, "batch head query key"]:
    """The attention pattern of one layer, in fp32, square.

    Raises:
        LensplugError: If it is not there, or is not one row for each position.
    """
    pattern = read(cache, f"blocks.{layer}.attn.hook_pattern", needed_by=needed_by)
    if getattr(cache, "query_positions", None) is not None:
        raise LensplugError(
            f"the cache holds the patterns of {cache.query_positions.shape[1]} query position(s) only, and {needed_by}"
            " needs every row: run without query_positions, or, for means over heads, with keep='head_mean'."
        )
    if pattern.ndim != 4 or pattern.shape[-1] != pattern.shape[-2]:
        raise LensplugError(
            f"the pattern of layer {layer} has the shape {list(pattern.shape)}, expected [batch, head, pos, pos]:"
            f" {needed_by} needs every row (do not slice positions, and do not generate with a key-value cache)."
        )
    return pattern.float()


def read_head_mean(cache: Any, layer: int, *, needed_by: str) -> Float[Tensor, "batch query key"]:
    """The mean of one layer's patterns over its heads, in fp32, of a cache that holds it or the patterns.

    Raises:
        LensplugError: If neither is there.
    """
    name = hook_names.head_mean(layer)
    if name in cache.cache_dict:
        return read(cache, name, needed_by=needed_by)
    return read_pattern(cache, layer, needed_by=needed_by).mean(dim=1)


def read_rows(
    cache: Any, layer: int, index: Int[Tensor, "batch row"], *, needed_by: str
) -> Float[Tensor, "batch head row key"]:
    """The attention pattern of one layer for chosen query positions, in fp32, of a cache that holds these rows or all.

    Raises:
        LensplugError: If the pattern is not there, or lacks one of the rows.
    """
    held = getattr(cache, "query_positions", None)
    if held is None:
        pattern, at = read_pattern(cache, layer, needed_by=needed_by), index
    else:
        pattern = read(cache, f"blocks.{layer}.attn.hook_pattern", needed_by=needed_by).float()
        at = _among(held, index, needed_by=needed_by, name="query_positions")
    at = at.to(pattern.device)[:, None, :, None].expand(-1, pattern.shape[1], -1, pattern.shape[3])
    return pattern.gather(2, at)


def read_residual(
    cache: Any, name: str, index: Int[Tensor, "batch position"], *, needed_by: str
) -> Float[Tensor, "batch position d_model"]:
    """The residual stream at chosen positions, of a cache that holds these or all.

    Raises:
        LensplugError: If it is not there, or lacks one of the positions.
    """
    residual = read(cache, name, needed_by=needed_by)
    held = getattr(cache, "residual_positions", None)
    at = index if held is None else _among(held, index, needed_by=needed_by, name="residual_positions")
    return residual.gather(1, at.to(residual.device)[:, :, None].expand(-1, -1, residual.shape[-1]))


def residual_shape(cache: Any, *, needed_by: str) -> tuple[int, int]:
    """The number of examples and of positions of the input."""
    residual = _held(cache, "blocks.0.hook_resid_pre", needed_by=needed_by)
    if getattr(cache, "residual_positions", None) is None:
        return residual.shape[0], residual.shape[1]
    return residual.shape[0], cache.attention_mask.shape[1]


def _among(
    held: Int[Tensor, "batch held"], index: Int[Tensor, "batch wanted"], *, needed_by: str, name: str
) -> Int[Tensor, "batch wanted"]:
    """Where the wanted positions are among those that a cache holds."""
    same = held.to(index.device)[:, None, :] == index[:, :, None]
    if not bool(same.any(dim=-1).all()):
        raise LensplugError(
            f"{needed_by} reads the positions {index.tolist()}, the cache holds {held.tolist()}: run with {name}= that"
            " has them, or without it."
        )
    return same.int().argmax(dim=-1)


def pattern_shape(cache: Any, *, needed_by: str) -> tuple[int, int]:
    """The number of examples and of key positions of a cache's patterns, or of the masses kept in their place."""
    n_layers(cache)  # an empty cache is told from one that lacks the pattern
    kept = cache.cache_dict.get(hook_names.modality_mass(0))
    if kept is not None:
        return kept.shape[0], kept.shape[2]
    pattern = _held(cache, "blocks.0.attn.hook_pattern", needed_by=needed_by)
    return pattern.shape[0], pattern.shape[-1]


def attended(
    cache: Any, shape: tuple[int, int], attention_mask: Int[Tensor, "batch pos"] | None, device: torch.device
) -> Int[Tensor, "batch pos"]:
    """Which positions are not padding: as given, else as the lens left it on the cache, else all.

    Raises:
        LensplugError: If the mask is not one row for each example.
    """
    mask = attention_mask if attention_mask is not None else getattr(cache, "attention_mask", None)
    if mask is None:
        return torch.ones(shape, dtype=torch.long, device=device)
    if tuple(mask.shape) != shape:
        raise LensplugError(f"attention_mask has the shape {list(mask.shape)}, the cache is {list(shape)}.")
    return mask.long().to(device)


def texts_of(
    cache: Any, given: Sequence[Sequence[Any]] | None, shape: tuple[int, int], name: str = "str_tokens"
) -> tuple[tuple[str, ...], ...]:
    """The text of each position: as given, else as it was left on the cache, else "".

    Raises:
        LensplugError: If it is not one text for each position.
    """
    texts = given if given is not None else getattr(cache, "str_tokens", None)
    if texts is None:
        return (("",) * shape[1],) * shape[0]
    if len(texts) != shape[0] or any(len(row) != shape[1] for row in texts):
        found = [len(texts), len(texts[0]) if len(texts) else 0]
        raise LensplugError(f"{name} is for {found} positions, the cache is {list(shape)}: give that of its inputs.")
    other = [text for row in texts for text in row if not isinstance(text, str)]
    if other:
        raise LensplugError(
            f"{name} holds a {type(other[0]).__name__}, expected texts: tokenizer.convert_ids_to_tokens(ids)."
        )
    return tuple(tuple(row) for row in texts)
