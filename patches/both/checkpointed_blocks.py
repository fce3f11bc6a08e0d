"""The blocks of a HookedTransformer or a TransformerBridge with gradient checkpointing.

The gap: while gradients are taken, TransformerLens keeps every activation of every block for the backward pass, a
dozen tensors of `[pos d_mlp]` or `[pos d_model]` each. Under this patch a block keeps its input, and is run again when
the backward pass comes to it: a third more time, a fraction of the memory, the same gradients. Hooks fire again then;
one that counts or keeps must expect it.

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
        """The block, of which the backward pass keeps the input only."""
        return checkpoint(self._forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
