"""Outputs of a processor as inputs of the full model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lensplug.hf.language_core import LanguageCore


def to_model(value: Any, core: LanguageCore) -> Any:
    """To the core's device, floats to its dtype: what `BatchFeature.to` does."""
    if not isinstance(value, Tensor):
        return value
    return value.to(core.device, core.dtype) if value.is_floating_point() else value.to(core.device)
