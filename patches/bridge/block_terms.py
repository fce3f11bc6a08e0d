"""The gap: what attention and MLP add to the residual stream, and the stream between them, are on no reliable hook.

In a TransformerBridge `hook_attn_out` is what attention returns, whatever becomes of it (a multiplier, a norm behind
it); an edit of `hook_resid_mid` reaches the norm behind it, and not the stream. Under this patch a bridge whose layers'
parts are known (`layer_parts`) has all three: `hook_attn_out` and `hook_mlp_out` are what is added, multiplied as the
layer multiplies it, and an edit of `hook_resid_mid` is an edit of the stream: what it changes is added to what the MLP
writes. Layers whose attention and MLP run side by side have no `hook_resid_mid`, as in HookedTransformer.

What a third part writes behind the MLP (per-layer inputs in Gemma 4) is on `hook_per_layer_out`, and
`cfg.stream_scales` says by which number each layer multiplies its stream at its end (Gemma 4's `layer_scalar`):
`resid_post = (resid_mid + mlp_out + per_layer_out) * scale`.

Checked against transformer-lens 3.9.0 and 4.3.0 with transformers 5.24.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from lensplug.patches.bridge.layer_parts import NAMES_OF_STREAMS, LayerParts, Term
from lensplug.patches.bridge.stream_terms import StreamTermsCache
from lensplug.patches.hook_points import has_hooks
from lensplug.patches.patch import Patch, PatchOfAttributes, PatchOfParts

PER_LAYER = "hook_per_layer_out"


class BlockTerms(PatchOfParts):
    """While applied, what blocks of a bridge add to the stream is on hooks. To be applied before `HookNames`."""

    def __init__(self, model: Any, parts: tuple[LayerParts, ...]) -> None:
        """Prepare the patch.

        Args:
            model: A TransformerBridge.
            parts: Of each of its layers.
        """
        patches: list[Patch] = []
        for block, of_layer in zip(model.blocks, parts, strict=True):
            pass_ = _Pass()
            layer = block.original_component
            points: dict[str, HookPoint] = {}

            def point(name: str, training: bool = block.training, points: dict[str, HookPoint] = points) -> HookPoint:
                points[name] = HookPoint().train(training)
                return points[name]

            writers: list[Patch] = []
            if (term := of_layer.attention_term) is not None:
                writers.append(_Writer(getattr(layer, term.part), point("hook_attn_out"), term, pass_))
            if (term := of_layer.mlp_term) is not None:
                writer = _Writer(getattr(layer, term.part), point("hook_mlp_out"), term, pass_, adds=True)
                writers.append(writer)
            if (term := of_layer.third_term) is not None:
                writers.append(_Writer(getattr(layer, term.part), point(PER_LAYER), term, pass_))
            if of_layer.reads_mid:
                middle = point("hook_resid_mid")
                writers += [_Reader(getattr(layer, part), middle, pass_) for part in of_layer.reads_mid]
            patches += [_Block(block, points), _Layer(layer, pass_), *writers]
        scales = tuple(of_layer.scale for of_layer in parts)
        if any(of_layer.third_term or of_layer.scale != 1 for of_layer in parts):
            patches += [Terms(model), _Scales(model.cfg, {"stream_scales": scales})]
        super().__init__(model, patches)


class _Pass:
    """What one pass through a layer has to know."""

    shape: torch.Size
    """Of the stream."""
    middle: Tensor | None = None
    """The stream between attention and MLP, as it left its hook."""
    edit: Tensor | None = None
    """What was added to it, and is on no part's output yet."""


class Terms(Patch):
    """While applied to a bridge, caches of its `run_with_cache` decompose into all that its blocks do to the stream."""

    def _changes(self) -> dict[str, Any]:
        self._run_with_cache = self.target.run_with_cache
        return {"run_with_cache": self.run_with_cache}

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerBridge.run_with_cache, whose caches know the terms."""
        output, cache = self._run_with_cache(*args, **kwargs)
        if not isinstance(cache, dict):
            cache.__class__ = StreamTermsCache
        return output, cache


class _Scales(PatchOfAttributes):
    """By which number each layer multiplies its stream, on the configuration."""


class _Block(PatchOfAttributes):
    """The hooks, on their block."""


class _Layer(Patch):
    """The Hugging Face layer inside."""

    def __init__(self, layer: nn.Module, pass_: _Pass) -> None:
        super().__init__(layer)
        self._pass = pass_

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer; an edit that no MLP has taken along is added to what it returns."""
        stream = args[0] if args else kwargs["hidden_states"]
        self._pass.shape, self._pass.edit, self._pass.middle = stream.shape, None, None
        output = self._forward(*args, **kwargs)
        edit, self._pass.edit, self._pass.middle = self._pass.edit, None, None
        if edit is None:
            return output
        return _with_first(output, _first(output) + edit)


class _Writer(Patch):
    """A part whose output, times a number, is added to the stream."""

    def __init__(self, part: nn.Module, point: HookPoint, term: Term, pass_: _Pass, *, adds: bool = False) -> None:
        super().__init__(part)
        self._point, self._scale, self._pass, self._adds = point, term.scale, pass_, adds

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The part, its output through the hook, and what was edited before it."""
        output = self._forward(*args, **kwargs)
        edit = self._pass.edit if self._adds else None
        if edit is None and not has_hooks(self._point):
            return output
        made = _first(output)
        written = made.view(self._pass.shape)
        if has_hooks(self._point):
            written = self._written(written)
        if edit is not None:
            written, self._pass.edit = written + edit / self._scale, None
        return _with_first(output, written.view(made.shape))

    def _written(self, made: Tensor) -> Tensor:
        if self._scale == 1:
            hooked: Tensor = self._point(made)
            return hooked
        hooked = self._point(made * self._scale)
        # Read only: the layer's own numbers, which dividing would round.
        if not hooked.requires_grad and torch.equal(hooked, made * self._scale):
            return made
        return hooked / self._scale


class _Reader(Patch):
    """A part that is given the stream between attention and MLP. The first of them calls the hook."""

    def __init__(self, part: nn.Module, point: HookPoint, pass_: _Pass) -> None:
        super().__init__(part)
        self._point, self._pass = point, pass_

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The part, given the stream that leaves the hook."""
        if not has_hooks(self._point):
            return self._forward(*args, **kwargs)
        name = "" if args else next(name for name in NAMES_OF_STREAMS if name in kwargs)
        given: Tensor = args[0] if args else kwargs[name]
        if self._pass.middle is None:
            self._pass.middle = self._point(given.view(self._pass.shape))
            if self._pass.middle is not given:
                self._pass.edit = self._pass.middle - given.view(self._pass.shape)
        middle = self._pass.middle.view(given.shape)
        if args:
            return self._forward(middle, *args[1:], **kwargs)
        return self._forward(**{**kwargs, name: middle})


def _first(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value
