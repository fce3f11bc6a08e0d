"""What a decoder is given beside embeddings, and is no reason to refuse it: it never reads it, or merges it itself.

Some models hand everything that they were called with down to their decoder (InternVL's `image_sizes`), where it ends
in `**kwargs`. Names do not tell what happens there: attention reads `is_causal` out of them. So the decoder is asked,
on the very embeddings of this input: with the argument, and without. It runs twice for that, only where there is such
an argument. What its `forward` names is read, whatever it does this time.

Chameleon's decoder is given tokens and pixels, and merges them before its first layer. Where that is all that it does
with them, its first layer is the seam (`merged_inside`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lensplug.hf.attention_choice import sdpa
from lensplug.hf.language_core import LanguageCore

SAME = 1e-5
"""Of the largest value: what the order of sums changes on a GPU."""


def read_ones(core: LanguageCore, kwargs: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Which of these arguments a decoder reads, by name.

    Args:
        core: Its decoder.
        kwargs: All that it is given.
        names: Of those that are in question, all given.
    """
    named = inspect.signature(type(core.decoder).forward).parameters
    if read := [name for name in names if name in named]:
        return read
    without = {name: value for name, value in kwargs.items() if name not in names}
    try:
        expected = _output(core, without)
        return [] if _same(_output(core, kwargs), expected) else list(names)
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError):
        return list(names)  # it runs with all of them only, or with none: they are read


def merged_inside(core: LanguageCore, kwargs: Mapping[str, Any], names: Sequence[str]) -> Tensor | None:
    """The merged embeddings of a decoder that merges media itself; None if it merges none, or does more with them.

    Args:
        core: Its decoder.
        kwargs: All that it is given, tokens among them.
        names: Those that are media.
    """
    entering: list[Tensor] = []

    def note(module: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        entering.append((args[0] if args else given["hidden_states"]).detach().clone())

    try:
        with core.decoder.layers[0].register_forward_pre_hook(note, with_kwargs=True):
            expected = _output(core, kwargs)
        with torch.no_grad():
            if torch.equal(entering[0], core.decoder.embed_tokens(kwargs["input_ids"])):
                return None  # nothing is merged here, whatever else is done
        without = {name: value for name, value in kwargs.items() if name not in (*names, "input_ids")}
        return entering[0] if _same(_output(core, {**without, "inputs_embeds": entering[0]}), expected) else None
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError):
        return None


def _output(core: LanguageCore, kwargs: Mapping[str, Any]) -> Tensor:
    given = {name: value for name, value in kwargs.items() if name not in ("cache", "past_key_values")}
    # A mask of the model's own has the form of the attention that it was made for.
    scope = sdpa(core) if "attention_mask" in core.beside else nullcontext()
    with torch.no_grad(), scope:
        output: Tensor = core.decoder(**{**given, "use_cache": False, "return_dict": True}).last_hidden_state
    return output


def _same(output: Tensor, expected: Tensor) -> bool:
    return torch.allclose(output, expected, rtol=0, atol=SAME * float(expected.abs().max()), equal_nan=True)
