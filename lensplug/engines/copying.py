"""Deep copies of two models that share weights, such that the copies share theirs too.

`copy.deepcopy` gives each parameter its own memory, which separates parameters that are views of each other. An edit of
one copy would then not reach the other, and memory would double.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def copy_together(hf_model: Any, model: Any, memo: dict[int, Any]) -> tuple[Any, Any]:
    """Copies of a full model and of its wrapped core; what shared memory shares it again, and nothing with these two.

    Args:
        hf_model: The full model, copied first.
        model: The wrapped core, whose parameters are views of the full model's, or its own.
        memo: The memo of `copy.deepcopy`.
    """
    copied = copy.deepcopy(hf_model, memo)
    pairs = zip(_tensors(hf_model), _tensors(copied), strict=True)
    memory = {
        original.untyped_storage().data_ptr(): (original, copied_parameter)
        for original, copied_parameter in pairs
        if original.numel()
    }
    for parameter in _of_one_memory(model.parameters()):
        original, copied_parameter = memory.get(parameter.untyped_storage().data_ptr(), (None, None))
        if (
            id(parameter) in memo
            or original is None
            or copied_parameter is None
            or not _laid_out_alike(original, copied_parameter)
        ):
            continue
        view = copied_parameter.detach().as_strided(parameter.shape, parameter.stride(), parameter.storage_offset())
        memo[id(parameter)] = nn.Parameter(view, requires_grad=parameter.requires_grad)
    return copied, copy.deepcopy(model, memo)


def _tensors(model: Any) -> list[Tensor]:
    return _of_one_memory([*model.parameters(), *model.buffers()])


def _of_one_memory(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Without those that are made of others (quantised ones of torchao): their layers are the same in both models."""
    return [tensor for tensor in tensors if not hasattr(tensor, "__tensor_flatten__")]


def _laid_out_alike(original: Tensor, copied: Tensor) -> bool:
    """Whether an offset and strides that fit the old memory fit the new."""
    sizes = (original.untyped_storage().nbytes(), copied.untyped_storage().nbytes())
    return sizes[0] == sizes[1] and original.stride() == copied.stride() and original.dtype == copied.dtype
