"""Gradient checkpointing for the blocks of a HookedTransformer or a TransformerBridge.

The gap: when gradients are computed, TransformerLens keeps every activation of every block for the backward pass, a
dozen tensors of `[pos d_mlp]` or `[pos d_model]` each. Under this patch a block keeps only its input and is recomputed
in the backward pass: a third more time, a fraction of the memory, the same gradients. Hooks fire again during
recomputation; hooks that count or store must expect it.

Checked against TransformerLens 3.9, and 4.3 for the bridge.
"""

from __future__ import annotations

from typing import Any

from torch.utils.checkpoint import checkpoint

from lensplug.patches.patch import Patch, PatchOfParts


class CheckpointedBlocks(PatchOfParts):
    """While applied, the blocks of a model are computed again in the backward pass."""

    def __init__(self, model: Any) -> None:
        """Keep `model`; nothing is changed before `apply`."""
        super().__init__(model, [_CheckpointedBlock(block) for block in model.blocks])


class _CheckpointedBlock(Patch):
    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block; only its input is kept for the backward pass."""
        return checkpoint(self._forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
