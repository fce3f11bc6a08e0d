"""The origin of a TransformerLens model: a fingerprint of its weights, and the weights that processing folded.

Results of two checkpoints look alike: they have one name, one dtype, one shape. A fingerprint tells them apart. It is a
hash over 64 numbers of every weight, read again for each run (0.5B: 10 ms), so that weights which are changed in place
have another. It is the same in every process and on every device, and for both engines, since numbers are taken in the
order of memory, in which both share the weights of the Hugging Face model; that model's encoders and projectors count.
An edit of fewer than one number in 64 of a weight may be missed. Processed weights are a copy in which the final norm's
weight is in the unembedding and value biases are in the output biases. `made_of` has both as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensplug.patches.adapters import is_adapted
from lensplug.patches.modules import every_module
from lensplug.patches.placement import is_loaded, loaded

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
    with torch.no_grad():
        samples_by_device = _samples([model] if full is None else [full, model])
        # One copy to the processor for each device, not one for each weight.
        numbers = tuple(torch.cat(samples).float().cpu().numpy().tobytes() for samples in samples_by_device.values())
    return _of_numbers(numbers, tuple(tuple(map(Tensor.numel, samples)) for samples in samples_by_device.values()))


@lru_cache(maxsize=4)  # of a lens that runs again nothing but the numbers themselves is compared
def _of_numbers(numbers: tuple[bytes, ...], counts: tuple[tuple[int, ...], ...]) -> str:
    """The fingerprint of weights: for each device the numbers of them all in fp32, and how many are of each."""
    each: set[bytes] = set()
    for of_device, counts_of_device in zip(numbers, counts, strict=True):
        stops = [4 * stop for stop in accumulate(counts_of_device)]
        each |= {sha256(of_device[start:stop]).digest() for start, stop in zip([0, *stops], stops, strict=False)}
    # Zeros are left out: HookedTransformer has biases of zeros where the model has none. Sorted and each once: the
    # engines come by the weights in different orders, and by tied ones twice.
    each -= ZEROS
    return sha256(b"".join(sorted(each))).hexdigest()[:16] if each else ""


def _samples(models: Sequence[nn.Module]) -> dict[torch.device, list[Tensor]]:
    """Numbers sampled evenly from each weight, in memory order, by device.

    Weights that are one piece of memory, as the engines share it, are read once. Module by module: a bridge's own
    `parameters()` leaves some out.
    """
    samples: dict[torch.device, list[Tensor]] = {}
    read: set[tuple[torch.device, int, int, torch.dtype]] = set()
    modules = every_module(*models)
    asleep = _asleep(modules)
    for module in modules:
        if module in asleep:
            continue
        for weight in _weights(module):
            device, numbers = weight.device, weight.numel()
            is_dense = weight.is_contiguous() or _is_dense(weight.shape, weight.stride())
            memory = (device, weight.data_ptr(), numbers, weight.dtype)
            if is_dense and memory in read or not numbers or device.type == "meta":
                continue
            step = max(1, numbers // SAMPLES) | 1  # an odd step does not stay in one column of a matrix
            if not is_dense:
                index = torch.arange(0, numbers, step, device=device)
                sample = weight[torch.unravel_index(index, weight.shape)]
            elif step == weight.ndim == 1:
                sample = weight  # of a norm or a bias all numbers
            else:  # a view: nothing is copied
                sample = weight.as_strided((-(-numbers // step),), (step,), weight.storage_offset())
            if is_dense:
                read.add(memory)
            samples.setdefault(device, []).append(sample)
    return samples


def _weights(module: nn.Module) -> list[Tensor]:
    """The weights of a module itself; of a tensor that is quantised, what it consists of."""
    weights: list[Tensor] = [weight for weight in module._parameters.values() if weight is not None]
    if any(weight.is_meta for weight in weights):
        return _offloaded(module)
    if all(type(weight) is nn.Parameter for weight in weights):
        return weights
    return [part for weight in weights for part in _parts(weight)]


def _asleep(modules: Sequence[nn.Module]) -> set[nn.Module]:
    """The parts of adapters that do not act: one fingerprint with an adapter, another without it."""
    asleep: set[nn.Module] = set()
    for layer in modules:
        if not is_adapted(layer):
            continue
        adapted: Any = layer
        acting = () if adapted.disable_adapters else adapted.active_adapters
        for container in adapted.children():
            if isinstance(container, nn.ModuleDict):
                asleep |= {part for name, own in container.items() if name not in acting for part in own.modules()}
    return asleep


_OFFLOADED: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()


def _offloaded(module: nn.Module) -> list[Tensor]:
    """Numbers of weights that are on disk or in the processor's memory, of which nobody changes one: read once."""
    if module not in _OFFLOADED and is_loaded(module):
        names = [name for name, weight in module._parameters.items() if weight is not None]
        whole = [loaded(module, name).detach().flatten() for name in names]
        _OFFLOADED[module] = [weight[:: max(1, len(weight) // SAMPLES) | 1].cpu().clone() for weight in whole]
    return _OFFLOADED.get(module, [])


def _parts(weight: Tensor) -> list[Tensor]:
    """The tensors that one of torchao's, or another wrapper of tensors, is made of."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight.view(torch.uint8) if weight.is_floating_point() and weight.itemsize == 1 else weight]
    inside: list[Tensor] = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
    return [part for tensor in inside for part in _parts(tensor)]


@lru_cache(maxsize=1024)
def _is_dense(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Whether a weight fills its memory without a gap, whatever the order of its axes."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
