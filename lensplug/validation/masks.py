"""Masks as users pass them; `as_mask` is defined in the patches, which import nothing from lensplug."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from lensplug.patches.masks import as_mask

__all__ = ["Mask", "as_mask"]

Mask = Shaped[Tensor, "*axes"] | np.ndarray | Sequence[Any]
"""True and False, or 1 and 0 of any dtype: a tensor, an array or nested lists. Anything else is refused."""
