"""Activations that were made up, for tests of what is trained on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lensplug.analysis import Activations
from lensplug.analysis.provenance import Provenance

MADE = Provenance("activations", "model", "float32", "resid_post at one position", {}, options={"hook": "resid_post"})


def collected(vectors: Any, hook: Any = "resid_post", **changes: Any) -> Activations:
    """Activations that were not collected, but made up: `[example layer (head) d_act]`."""
    vectors = torch.as_tensor(vectors)
    made = replace(MADE, options={"hook": hook}, **changes)
    return Activations(vectors, torch.ones(len(vectors)).long(), tuple(range(vectors.shape[1])), hook, made)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
