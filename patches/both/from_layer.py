"""Runs that begin at a layer: the blocks below it are not computed, and a residual stream is put in.

The gap: many runs that are the same up to a layer (an activation patched there, heads cut there) compute what they have
in common each time. HookedTransformer begins at a layer with `start_at_layer`, which takes a residual stream in place
of inputs; a TransformerBridge takes it too, but still runs all blocks. Under this patch either model runs on its
inputs as ever, so that padding, positions and masks are those that it makes for them; the blocks below the layer hand
on what they get, and the layer's own block gets the residual stream that is given. Hooks below it do not fire.

When not to use it: with what changes the blocks below, or counts on their hooks; with a key-value cache. Where later
layers read keys and values of an earlier one (Gemma 4, Gemma 3n), runs begin there at the latest (`last_beginning`).

Checked against transformer-lens 3.9.0 and 4.3.0.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from lensplug.patches.errors import LensplugError
from lensplug.patches.modules import attention_of
from lensplug.patches.patch import Patch, PatchOfParts


class FromLayer(PatchOfParts):
    """While applied, runs of a model begin at a layer.

    with FromLayer(model, 3, cache["resid_pre", 3]):
        logits = model(inputs)                     # as without it, from the fourth block on
    """

    def __init__(self, model: Any, layer: int, residual: Float[Tensor, "batch pos d_model"]) -> None:
        """Prepare the patch.

        Args:
            model: A HookedTransformer or a TransformerBridge.
            layer: The first that is computed, from 0 to the number of layers - 1.
            residual: What enters it, of the inputs that the model will be run on. It is not written into.

        Raises:
            LensplugError: If there is no such layer.
        """
        if not 0 <= layer < len(model.blocks):
            raise LensplugError(f"layer is {layer}, expected 0 to {len(model.blocks) - 1}.")
        if layer > (last := last_beginning(model)):
            raise LensplugError(
                f"runs of this model begin at layer {last} at the latest, not at {layer}: its last layers have no keys"
                f" and values of their own and read those of layers from {last} on."
            )
        first: Patch = _FirstBlock(model.blocks[layer], residual)
        super().__init__(model, [first, *(_SkippedBlock(block) for block in model.blocks[:layer])])


def last_beginning(model: Any) -> int:
    """The last layer at which runs of a model can begin: behind it layers read keys that an earlier one has made."""
    attentions = [getattr(attention_of(block), "original_component", None) for block in model.blocks]
    if not any(getattr(attention, "is_kv_shared_layer", False) for attention in attentions):
        return len(model.blocks) - 1
    return next(
        layer
        for layer, attention in enumerate(attentions)
        if getattr(attention, "store_full_length_kv", True) and attention is not None
    )


class _SkippedBlock(Patch):
    """A block that hands on what it gets."""

    def _changes(self) -> dict[str, Any]:
        return {"forward": self.forward}

    def forward(self, residual: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return residual


class _FirstBlock(Patch):
    """The block that is given a residual stream."""

    def __init__(self, block: Any, residual: Float[Tensor, "batch pos d_model"]) -> None:
        super().__init__(block)
        self._residual = residual

    def _options(self) -> dict[str, Any]:
        return {"residual": self._residual}

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, residual: Tensor, *args: Any, **kwargs: Any) -> Any:
        if residual.shape != self._residual.shape:
            raise LensplugError(
                f"the residual stream that is put in is {list(self._residual.shape)}, the model runs on"
                f" {list(residual.shape)}."
            )
        # A copy: hooks may write into what they get.
        return self._forward(self._residual.to(residual).clone(), *args, **kwargs)
