"""The origin of a TransformerLens model: a fingerprint of its weights, and the weights that processing folded.

Results of two checkpoints look alike: they have one name, one dtype, one shape. A fingerprint tells them apart. It is a
hash over 64 numbers of every weight, read again for each run (0.5B: 10 ms), so that weights which are changed in place
have another. It is the same in every process and on every device, and for both engines, since numbers are taken in the
order of memory, in which both share the weights of the Hugging Face model; that model's encoders and projectors count.
An edit of fewer than one number in 64 of a weight may be missed. Processed weights are a copy in which the final norm's
weight is in the unembedding and value biases are in the output biases. `made_of` has both as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensplug.patches.modules import every_module

SAMPLES = 64
"""How many numbers of each weight are read, up to twice as many."""
ZEROS = {sha256(bytes(4 * count)).digest() for count in range(1, 2 * SAMPLES + 1)}


@dataclass(frozen=True)
class Origin:
    """The model that a wrapped core was built from."""

    full: ref[nn.Module]
    """With its encoders and projectors; a weak reference."""
    unembedding: Float[Tensor, "d_vocab d_model"]
    value_biases: tuple[Float[Tensor, " kv_d_head"] | None, ...]
    """Value bias of each layer; None where it has none."""


_ORIGINS: WeakKeyDictionary[Any, Origin] = WeakKeyDictionary()


def remember(model: Any, hf_model: nn.Module, decoder: Any, head: Any) -> None:
    """Record that a TransformerLens model was built from a Hugging Face model's decoder and head."""
    values = [getattr(getattr(layer, "self_attn", None), "v_proj", None) for layer in decoder.layers]
    biases = tuple(getattr(value, "bias", None) for value in values)
    if all(value is not None for value in values):
        _ORIGINS[model] = Origin(ref(hf_model), head.weight, biases)


def made_of(model: Any) -> Origin | None:
    """The origin recorded for a lens's model; None for one that TransformerLens built by itself."""
    return _ORIGINS.get(model) if isinstance(model, nn.Module) else None


def fingerprint(model: Any) -> str:
    """Sixteen characters that are others for other weights; "" for what has none, such as attentions alone.

    Weights that hold the same numbers in fp32 and in bf16 have one fingerprint.
    """
    if not isinstance(model, nn.Module):
        return ""
    origin = made_of(model)
    full = None if origin is None else origin.full()
    by_device: dict[torch.device, list[Tensor]] = {}
    each: set[bytes] = set()
    with torch.no_grad():
        for samples in _samples([model] if full is None else [full, model]):
            by_device.setdefault(samples.device, []).append(samples)
        # One copy to the processor for each device, not one for each weight.
        for several in by_device.values():
            numbers, start = torch.cat(several).float().cpu().numpy().tobytes(), 0
            for samples in several:
                stop = start + 4 * samples.shape[0]
                each.add(sha256(numbers[start:stop]).digest())
                start = stop
    # Zeros are left out: HookedTransformer has biases of zeros where the model has none. Sorted and each once: the
    # engines come by the weights in different orders, and by tied ones twice.
    each -= ZEROS
    return sha256(b"".join(sorted(each))).hexdigest()[:16] if each else ""


def _samples(models: Sequence[nn.Module]) -> Iterator[Tensor]:
    """Numbers sampled evenly from each weight, in memory order.

    Weights that are one piece of memory, as the engines share it, are read once. Module by module: a bridge's own
    `parameters()` leaves some out.
    """
    read: set[tuple[torch.device, int, int, torch.dtype]] = set()
    for module in every_module(*models):
        for weight in module._parameters.values():
            if weight is None or weight.is_meta or not (numbers := weight.numel()):
                continue
            step = max(1, numbers // SAMPLES) | 1  # an odd step does not stay in one column of a matrix
            if not _is_dense(weight):
                index = torch.arange(0, numbers, step, device=weight.device)
                yield weight[torch.unravel_index(index, weight.shape)]
            elif (memory := (weight.device, weight.data_ptr(), numbers, weight.dtype)) not in read:
                read.add(memory)  # a view: nothing is copied
                yield weight.as_strided((-(-numbers // step),), (step,), weight.storage_offset())


def _is_dense(weight: Tensor) -> bool:
    """Whether it fills its memory without a gap, whatever the order of its axes."""
    if weight.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(weight.stride(), weight.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
