"""The gap: tokens that contain the placeholder of an image run silently without the image, and give other outputs.

A multimodal model's tokens mark where its image goes, `<image> <image> ...`, not its content. The language core treats
them as text tokens whose embedding was never trained: TransformerLens's own tools, given tokens, would study a prompt
that the full model never sees. While this patch is applied to a HookedTransformer or a TransformerBridge, token
ids and strings that hold such a placeholder are refused wherever they can run: `model(x)`, `run_with_cache`,
`run_with_hooks`, `generate` and its relatives, `input_to_embed`. Merged embeddings are not affected.

To use the placeholder's own embedding on purpose:

    with placeholders_as_words():
        model(tokens)

Checked against transformer-lens 3.9.0 and 4.3.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import torch
from torch import Tensor

from lensplug.patches.errors import LensplugError
from lensplug.patches.merged_embeddings import is_merged
from lensplug.patches.patch import Patch

DOORS = ("forward", "generate", "generate_stream", "hf_generate", "diffusion_generate", "input_to_embed")
"""Where tokens go in; what runs with a cache or with hooks goes through `forward`."""

_AS_WORDS: ContextVar[bool] = ContextVar("placeholders_as_words", default=False)


@contextmanager
def placeholders_as_words() -> Iterator[None]:
    """A scope, in this thread, in which placeholders without media run as if they were text."""
    before = _AS_WORDS.get()
    try:
        try:
            _AS_WORDS.set(True)
            yield
        finally:
            _AS_WORDS.set(before)
    finally:
        _AS_WORDS.set(before)  # an interruption may come at the line above


class PlaceholdersRefused(Patch):
    """While applied, tokens that hold the placeholder of a medium are refused. To be applied last."""

    def __init__(self, model: Any, placeholder_ids: Mapping[str, int]) -> None:
        """Keep `model`; nothing is changed before `apply`.

        Args:
            model: A HookedTransformer or a TransformerBridge.
            placeholder_ids: Modality ("image", "video", "audio") -> the token id of its placeholder.
        """
        super().__init__(model)
        self._ids = dict(placeholder_ids)

    def _options(self) -> dict[str, Any]:
        return {f"{kind} placeholder": token for kind, token in self._ids.items()}

    def _changes(self) -> dict[str, Any]:
        return {name: _Door(self, getattr(self.target, name)) for name in DOORS if hasattr(self.target, name)}

    def refuse(self, given: Any) -> None:
        """Raise if these are tokens, or words, that hold a placeholder."""
        tokens = self._tokens(given)
        if tokens is None:
            return
        for kind, token in self._ids.items():
            if count := int((tokens == token).sum()):
                raise LensplugError(
                    f"the tokens hold {count} {kind} placeholder(s) (id {token}) and no {kind}: the model would take"
                    f" them for words. Give the inputs of lens.prepare (lens.encode) in place of their tokens, to the"
                    f" model and to TransformerLens's tools alike; where the placeholder's own embedding is meant, run"
                    f" it inside `with lens.placeholders_as_words():`."
                )

    def _tokens(self, model_input: Any) -> Tensor | None:
        """The token ids that would run; None where these are no tokens."""
        if model_input is None or is_merged(model_input):
            return None
        if isinstance(model_input, str) or (
            isinstance(model_input, list | tuple) and any(isinstance(x, str) for x in model_input)
        ):
            if getattr(self.target, "tokenizer", None) is None:
                return None  # TransformerLens says what is missing
            tokens: Tensor = self.target.to_tokens(model_input, prepend_bos=False)
            return tokens
        try:
            return model_input if isinstance(model_input, Tensor) else torch.as_tensor(model_input)
        except (TypeError, ValueError, RuntimeError):
            return None


class _Door:
    """A method of a model that first checks its input. An object, so that a copied model gets its own."""

    def __init__(self, patch: PlaceholdersRefused, method: Callable[..., Any]) -> None:
        self._patch, self._method = patch, method

    @property
    def __self__(self) -> Any:
        """Whose method it is: a patch looks whether its kind is there already."""
        return getattr(self._method, "__self__", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _AS_WORDS.get():
            return self._method(*args, **kwargs)
        for model_input in (*args[:1], kwargs.get("input"), kwargs.get("input_ids")):
            self._patch.refuse(model_input)
        # What a model has written itself may be anything. In a context of its own: nothing has to be put back.
        context = copy_context()
        context.run(_AS_WORDS.set, True)
        return context.run(self._method, *args, **kwargs)
