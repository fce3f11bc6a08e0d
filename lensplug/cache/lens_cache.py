"""The cache of a lens: TransformerLens's ActivationCache that knows its positions.

Which positions are padding, what each says, which rows of patterns and of the residual stream were kept, and how what
was reduced while the model ran was made: without these a number in a cache can be another position's. They are kept
through everything that TransformerLens does to a cache (`apply_slice_to_batch_dim`, `remove_batch_dim`, `to`), and what
TransformerLens reads by position is refused where only some positions were kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.utilities import Slice, get_act_name

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.patches.bridge.stream_terms import StreamTermsCache
from lensplug.patches.modules import attention_of
from lensplug.patches.unseen_keys import UnseenKeys, unseen_keys
from lensplug.provenance.fingerprint import fingerprint
from lensplug.reductions import names as hook_names
from lensplug.reductions.mixing import Mixing

Texts = tuple[tuple[str, ...], ...]


class LensCache(StreamTermsCache):
    """Activations by TransformerLens's names, and which position is what."""

    attention_mask: Int[Tensor, "batch pos"]
    """1 = attended, 0 = padding: negative positions count from the last that is attended."""
    str_tokens: Texts | None
    """The text of each position of each example."""
    query_positions: Int[Tensor, "batch query"] | None
    """The query positions, from the left, whose scores and patterns were kept; None: all of them."""
    residual_positions: Int[Tensor, "batch residual"] | None
    """The positions at which the residual stream was kept; None: all of them."""
    modality_parts: Bool[Tensor, "batch part pos"] | None
    """Which positions are which part in what `keep="modality_mass"` kept."""
    rollout_mixing: Mixing | None
    """With which options `keep="rollout"` multiplied."""
    received_times: float | None
    """How many even shares `keep="received"` took for a query to look at a key."""
    weights: str
    """The fingerprint of the weights that ran (`lensplug.provenance.fingerprint`): they may be changed before the cache
    is read."""
    interventions: tuple[str, ...]
    """The edits under which the run was made (`lensplug.interventions`), in words."""
    unseen: Mapping[int, tuple[UnseenKeys, ...]]
    """Layer -> the keys that knockouts kept some of its queries from, in this run."""

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        has_batch_dim: bool = True,
        *,
        attention_mask: Int[Tensor, "batch pos"],
        str_tokens: Texts | None = None,
        query_positions: Int[Tensor, "batch query"] | None = None,
        residual_positions: Int[Tensor, "batch residual"] | None = None,
        modality_parts: Bool[Tensor, "batch part pos"] | None = None,
        rollout_mixing: Mixing | None = None,
        received_times: float | None = None,
        weights: str = "",
        interventions: tuple[str, ...] = (),
        unseen: Mapping[int, tuple[UnseenKeys, ...]] = MappingProxyType({}),
    ) -> None:
        """Runs of a lens make it; `lensplug.cache_from_attentions` does of attentions."""
        super().__init__(cache_dict, model, has_batch_dim)
        self.attention_mask, self.str_tokens = attention_mask, str_tokens
        self.query_positions, self.residual_positions = query_positions, residual_positions
        self.modality_parts, self.rollout_mixing = modality_parts, rollout_mixing
        self.received_times = received_times
        self.weights, self.interventions, self.unseen = weights, interventions, unseen

    @classmethod
    def of(
        cls,
        cache_dict: dict[str, Tensor],
        model: Any,
        inputs: MultimodalInput,
        *,
        weights: str | None = None,
        **known: Any,
    ) -> LensCache:
        """The cache of a run on these inputs."""
        texts = tuple(map(tuple, inputs.str_tokens))
        known["weights"] = fingerprint(model) if weights is None else weights
        known["interventions"] = tuple(getattr(model, "interventions", ()))
        attentions = {layer: attention_of(block) for layer, block in enumerate(model.blocks)}
        in_blocks = {layer: unseen_keys(attn) for layer, attn in attentions.items() if attn is not None}
        known["unseen"] = {layer: knockouts for layer, knockouts in in_blocks.items() if knockouts}
        return cls(cache_dict, model, attention_mask=inputs.attention_mask, str_tokens=texts, **known)

    def add(self, named: Mapping[str, Tensor], noted: Mapping[str, Any], device: Any = None) -> None:
        """Take in what a reduction kept, and how it was made."""
        self.cache_dict |= {name: value.to(device or value.device) for name, value in named.items()}
        for name, value in noted.items():
            setattr(self, name, value)

    def __getitem__(self, key: Any) -> Tensor:
        """An activation, by any of its names: a bridge calls `hook_resid_post` `hook_out`, and so do tools for it."""
        if isinstance(key, str) and key not in self.cache_dict:
            point = getattr(self.model, "hook_dict", {}).get(key)
            if point is not None and point.name in self.cache_dict:
                return self.cache_dict[point.name]
        value: Tensor = super().__getitem__(key)
        return value

    def __setitem__(self, key: str | tuple[Any, ...], value: Tensor) -> None:
        """Replace an activation, `cache["pattern", 0] = edited`, or add one.

        What was reduced of a pattern that is replaced goes, since it is no longer of that pattern.

        Raises:
            LensplugError: If it has another shape than the one it replaces.
        """
        name = key if isinstance(key, str) and key in self.cache_dict else _name(key, self.model)
        cached = self.cache_dict.get(name)
        if cached is not None and cached.shape != value.shape:
            raise LensplugError(f"{name!r} is {list(cached.shape)} in this cache, the new value {list(value.shape)}.")
        self.cache_dict[name] = value
        if name.endswith("attn.hook_pattern"):
            layer = int(name.split(".")[1])
            of_all = (hook_names.ROLLOUT, hook_names.ROLLOUT_ROWS)
            of_layer = (hook_names.head_mean, hook_names.modality_mass, hook_names.received)
            derived = (*(name_of(layer) for name_of in of_layer), *of_all)
            cams = (hook_names.cam(layer, sign) for sign in ("positive", "negative"))
            products = [kept for kept in self.cache_dict if kept.startswith(hook_names.GRADIENT_ROLLOUT)]
            for outdated in (*derived, *cams, *products):
                self.cache_dict.pop(outdated, None)

    def to(self, device: Any) -> LensCache:
        """Move everything to a device; returns the cache itself."""
        super().to(device)
        self._each_tensor(lambda value: value.to(device))
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> LensCache:
        """Some of the examples, as TransformerLens chooses them: a new cache, which knows theirs."""
        chosen = batch_slice if isinstance(batch_slice, Slice) else Slice(batch_slice)
        sliced = super().apply_slice_to_batch_dim(chosen)
        copied = object.__new__(type(self))
        copied.__dict__.update(vars(self) | vars(sliced))
        if self.has_batch_dim:  # of a cache without, there is nothing to choose
            examples = chosen.apply(torch.arange(len(self.attention_mask))).reshape(-1)
            copied._each_tensor(lambda value: value[examples.to(value.device)])
            copied.unseen = {
                layer: tuple(keys.of_examples(examples) for keys in knockouts)
                for layer, knockouts in self.unseen.items()
            }
            copied.str_tokens = self.str_tokens and tuple(self.str_tokens[example] for example in examples.tolist())
        return copied

    def remove_batch_dim(self) -> LensCache:
        """Take the batch axis off the cache of one example; returns the cache itself.

        Raises:
            LensplugError: If it holds more than one.
        """
        if self.has_batch_dim and len(self.attention_mask) != 1:
            raise LensplugError(
                f"the cache holds {len(self.attention_mask)} examples, and its batch axis can only go where it holds 1:"
                " choose one first, cache.apply_slice_to_batch_dim(0) takes the axis off as well."
            )
        super().remove_batch_dim()
        return self

    def _each_tensor(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in ("attention_mask", "query_positions", "residual_positions", "modality_parts"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else change(value))


READ_BY_POSITION = (
    "accumulated_resid",
    "apply_ln_to_stack",
    "decompose_resid",
    "get_full_resid_decomposition",
    "get_neuron_results",
    "logit_attrs",
    "logit_lens",
    "stack_activation",
    "stack_head_results",
    "stack_neuron_results",
)
"""Methods of TransformerLens that take an index of an activation to be a position."""


def _name(key: Any, model: Any) -> str:
    """What TransformerLens calls an activation, of its name or short form."""
    if isinstance(key, str):
        return key if "." in key or key.startswith("hook_") else get_act_name(key)
    if len(key) > 1 and key[1] is not None and key[1] < 0:
        key = (key[0], model.cfg.n_layers + key[1], *key[2:])
    return str(get_act_name(*key))


def _of_every_position(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, refused of a cache in which an index is no position."""

    @wraps(method)
    def of_every_position(self: LensCache, *args: Any, **kwargs: Any) -> Any:
        if self.residual_positions is not None:
            raise LensplugError(
                f"{method.__name__} reads a cache by position, and this one holds the residual stream of"
                f" {self.residual_positions.tolist()} only: an index would be another position's. Run without"
                " residual_positions, or use lensplug.analysis, which knows what was kept."
            )
        return method(self, *args, **kwargs)

    return of_every_position


for _method in READ_BY_POSITION:  # those that this version of TransformerLens has
    if hasattr(StreamTermsCache, _method):
        setattr(LensCache, _method, _of_every_position(getattr(StreamTermsCache, _method)))
