"""The two models of a proof, Hugging Face's with eager attention and the wrapped core, run on the same prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lensplug import engines
from lensplug.hf.attention_choice import eager
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.lead import Lead
from lensplug.patches.both.temporary_hooks import temporary_hooks
from lensplug.proof.prompts import Prompt

Hook = Callable[[Tensor, Any], Tensor | None]
PROJECTIONS = ("o_proj", "out_proj", "dense", "wo")
"""What Hugging Face calls the matrix behind the heads."""
DOWN = ("down_proj", "w2", "fc2", "c_proj", "dense_4h_to_h")
"""What it calls the last matrix of an MLP."""


@dataclass(frozen=True)
class Pair:
    """A full model and its wrapped core."""

    hf_model: Any
    core: LanguageCore
    model: Any
    engine: engines.EngineName
    lead: Lead = Lead()
    """What words have to stand behind for the full model."""

    @property
    def layers(self) -> list[nn.Module]:
        """Hugging Face's."""
        return list(self.core.decoder.layers)

    @cached_property
    def hook_names(self) -> set[str]:
        """The hooks that the wrapped core has."""
        return set(self.model.hook_dict)

    def wrapped(
        self, prompt: Prompt, hooks: Sequence[tuple[str, Hook]] = (), *, at: Tensor | None = None, **others: Any
    ) -> Tensor:
        """Logits of the wrapped core, with hooks of TransformerLens's names; at the positions `at` only, if given.

        A vocabulary of 150,000 takes a quarter of the time of a small model: `at` is `[batch row]`, fewer rows than
        there are positions, or none.
        """
        given = SimpleNamespace(
            embeds=others.pop("embeds", prompt.embeds),
            tokens=prompt.tokens,
            attention_mask=prompt.attention_mask,
            decoder_inputs=prompt.decoder_inputs,
        )
        chosen = nullcontext() if at is None else engines.logit_rows(self.model, at)
        with chosen, temporary_hooks(self.model, hooks):
            logits: Tensor = self.model.forward(given, return_type="logits", **others)
        return logits

    def reference(
        self, prompt: Prompt, hooks: Sequence[Any] = (), *, at: Tensor | None = None, **others: Any
    ) -> Tensor:
        """Logits of the full model, as in `wrapped`; `hooks` are handles of hooks on it, which are removed."""
        with ExitStack() as scope:
            if at is not None:
                scope.enter_context(on_input(self.core.head, partial(rows_of, at=at)))
            for hook in hooks:
                scope.enter_context(hook)  # which removes it
            scope.enter_context(eager(self.core))
            logits: Tensor = self.hf_model(**{**prompt.model_inputs, "use_cache": False, **others}).logits
        return logits if at is None or logits.shape[1] == at.shape[1] else rows_of(logits, at=at)

    def attention_of(self, layer: int) -> nn.Module | None:
        """The part of a Hugging Face layer that attends; None where there is none by a usual name."""
        names = ("self_attn", "attn", "attention", "self_attention")
        return next((part for name in names if (part := getattr(self.layers[layer], name, None)) is not None), None)

    def part(self, layer: int, names: Sequence[str], among: nn.Module | None = None) -> nn.Module | None:
        """A matrix of a layer by one of its usual names, where there is just one."""
        root = self.layers[layer] if among is None else among
        parts = [part for name, part in root.named_modules() if name.split(".")[-1] in names and _is_linear(part)]
        return parts[0] if len(parts) == 1 else None


def stream(output: Any) -> Tensor:
    """What a layer or a part of it returns, without what comes along."""
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def with_stream(output: Any, value: Tensor) -> Any:
    """The same with another stream."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


def on_input(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Any:
    """A hook on what a Hugging Face module is given, by position or by name."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            changed = change(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        name = next(name for name in ("hidden_states", "x", "inputs_embeds") if name in kwargs)
        changed = change(kwargs[name])
        return None if changed is None else (args, {**kwargs, name: changed})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def on_output(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Any:
    """A hook on what a Hugging Face module returns."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        changed = change(stream(output))
        return None if changed is None else with_stream(output, changed)

    return module.register_forward_hook(hook)


def _is_linear(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def rows_of(value: Tensor, *, at: Tensor) -> Tensor:
    """Of `[batch pos width]` the positions `at`, `[batch row]`."""
    return value.gather(1, at.to(value.device)[:, :, None].expand(-1, -1, value.shape[-1]))


def rounded_otherwise(value: Tensor) -> Tensor:
    """A stream whose numbers are one rounding away, up or down by chance."""
    signs = torch.randint(0, 2, value.shape, generator=generator()).to(value) * 2 - 1
    return value * (1 + torch.finfo(value.dtype).eps * signs)


def generator(seed: int = 0) -> torch.Generator:
    """Chance that is the same each time, on every device."""
    return torch.Generator().manual_seed(seed)


def noise(like: Tensor, seed: int = 0) -> Tensor:
    """Normal numbers of a tensor's shape, device and dtype."""
    return torch.randn(like.shape, generator=generator(seed)).to(like)
