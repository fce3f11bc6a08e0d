"""Tensors that edits hold, as text: two edits with other numbers have other words in the provenance of a result."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor


def tensor_in_words(tensor: Tensor) -> str:
    """Shape, and a fingerprint of the numbers."""
    numbers = tensor.detach().to("cpu", torch.float32).contiguous()
    return f"tensor {list(tensor.shape)} {sha256(numbers.numpy().tobytes()).hexdigest()[:8]}"
