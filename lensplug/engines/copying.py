"""A deep copy of two models whose weights are the same memory, so that those of the copies are, too.

`copy.deepcopy` gives each parameter memory of its own: two that are views of one another part. An edit of the one copy
would then not reach the other, and twice the memory be taken.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


def copy_together(hf_model: Any, model: Any, memo: dict[int, Any]) -> tuple[Any, Any]:
    """Copies of a full model and of its wrapped core; what shared memory shares it again, and nothing with these two.

    Args:
        hf_model: The full model, copied first.
        model: The wrapped core, whose parameters are views of the full model's, or its own.
        memo: Of `copy.deepcopy`.
    """
    copied = copy.deepcopy(hf_model, memo)
    pairs = zip(_tensors(hf_model), _tensors(copied), strict=True)
    memory = {old.untyped_storage().data_ptr(): (old, new) for old, new in pairs if old.numel()}
    for parameter in model.parameters():
        old, new = memory.get(parameter.untyped_storage().data_ptr(), (None, None))
        if id(parameter) in memo or old is None or new is None or not _laid_out_alike(old, new):
            continue
        view = new.detach().as_strided(parameter.shape, parameter.stride(), parameter.storage_offset())
        memo[id(parameter)] = nn.Parameter(view, requires_grad=parameter.requires_grad)
    return copied, copy.deepcopy(model, memo)


def _tensors(model: Any) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _laid_out_alike(old: Tensor, new: Tensor) -> bool:
    """Whether an offset and strides that fit the old memory fit the new."""
    sizes = (old.untyped_storage().nbytes(), new.untyped_storage().nbytes())
    return sizes[0] == sizes[1] and old.stride() == new.stride() and old.dtype == new.dtype
