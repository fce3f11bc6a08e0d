"""Inputs of any family made by hand, from the shapes in its configuration: text, and text with each medium it takes.

Where the family has `get_image_features` (or of videos, or audio), that says how many positions the medium takes; forms
of pixels and spectrograms (`forms.FORMS`) are tried in order until the model's encoder takes one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from support.families.forms import FORMS

KINDS = ("image", "video", "audio")
TYPE_IDS = {"image": 1, "video": 2, "audio": 3}
WORDS = 12
MOST_POSITIONS = 70
OTHERS = (100, 200, 300)
"""Seeds of other media, beyond the first's: of several coarse ones two may be the same (Chameleon's codes)."""
MATTERS = 1e-2
"""In logits: a medium that changes less was not read."""


def text_inputs(words: int = WORDS, seed: int = 0) -> dict[str, Tensor]:
    """Words alone, none of them a placeholder."""
    tokens = torch.randint(60, 290, (1, words), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def placeholder(config: Any, kind: str) -> int | None:
    """The token that a medium's positions have."""
    part = getattr(config, {"image": "vision_config", "audio": "audio_config"}.get(kind, ""), None)
    for place in (config, part):
        for name in (f"{kind}_token_id", f"{kind}_token_index", f"{kind}_patch_id"):
            token = getattr(place, name, None)
            if isinstance(token, int):
                return token
    return None


def with_medium(model: Any, kind: str, seed: int = 0) -> dict[str, Any]:
    """Words, one image (video, sound), words.

    Raises:
        ValueError: If no form that is known here is one that the model takes; with the first error of each.
    """
    token = placeholder(model.config, kind)
    name = f"get_{kind}_features"
    features = getattr(model, name, None) or getattr(getattr(model, "model", None), name, None)
    if token is None:
        raise ValueError(f"no token for {kind} in its configuration")
    taken = set(inspect.signature(type(model).forward).parameters)
    errors: dict[str, str] = {}
    for form in FORMS[kind]:
        try:
            made = form(model.config, torch.Generator().manual_seed(seed))
            if not set(made) <= taken:
                continue
            counts = _counts(features, made)
            for positions, runs in product(counts, _runs(made)):
                inputs = {**_prompt(token, positions, runs, kind, taken, seed), **made}
                try:
                    with torch.no_grad():
                        logits = model(**inputs, use_cache=False).logits
                    read = any(_moves(model, inputs, form, logits, seed + other) for other in OTHERS)
                    if logits.shape[1] != inputs["input_ids"].shape[1]:
                        raise ValueError("one token was made many positions, as processors no longer ask for")
                except (ValueError, RuntimeError):
                    if len(counts) == 1 and runs == _runs(made)[-1]:
                        raise
                    continue  # another number of positions, or each step of time by itself
                if read:
                    return inputs
                raise ValueError("the medium does not change the logits")
        except Exception as error:  # any: forms are guesses
            errors.setdefault(str(error)[:120] or type(error).__name__, form.__name__)
    raise ValueError("; ".join(f"{form}: {error}" for error, form in errors.items()) or "no form fits its arguments")


def _moves(model: Any, inputs: dict[str, Any], form: Any, logits: Tensor, seed: int) -> bool:
    """Whether another medium gives other logits."""
    with torch.no_grad():
        others = model(**{**inputs, **form(model.config, torch.Generator().manual_seed(seed))}, use_cache=False).logits
    return float((logits - others).abs().max()) > MATTERS


def _counts(features: Any, made: dict[str, Any]) -> list[int]:
    """The number of positions that a medium takes; where the model does not say it, all that are worth a try."""
    if features is None or "input_ids" in inspect.signature(features).parameters:
        return list(range(1, MOST_POSITIONS))
    with torch.no_grad():
        return [_positions(features(**made))]


def _runs(made: dict[str, Any]) -> list[int]:
    """In how many pieces its positions may lie: one, or, for steps of time between words (Qwen3-VL), as many."""
    return [1, int(made["video_grid_thw"][0, 0])] if "video_grid_thw" in made else [1]


def _prompt(token: int, positions: int, runs: int, kind: str, taken: set[str], seed: int) -> dict[str, Tensor]:
    words = text_inputs(seed=seed)["input_ids"][0]
    pieces = [words[: WORDS // 2], torch.full((positions // runs,), token)]
    for _ in range(runs - 1):
        pieces += [words[:1], pieces[1]]
    tokens = torch.cat([*pieces, words[WORDS // 2 :]])[None]
    prompt = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in taken:
            prompt[name] = (tokens == token).long() * (TYPE_IDS[kind] if name == "mm_token_type_ids" else 1)
    return prompt


def _positions(features: Any) -> int:
    """How many vectors these are: a tensor, a list of tensors, or an output that holds them."""
    if getattr(features, "pooler_output", None) is None and getattr(features, "deepstack_features", None):
        # Granite 4's, by layer
        return _positions(features.deepstack_features[0][1])
    if hasattr(features, "pooler_output") and features.pooler_output is not None:
        return _positions(features.pooler_output)
    if hasattr(features, "last_hidden_state"):
        return _positions(features.last_hidden_state)
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    if isinstance(features, list | tuple):
        return sum(map(_positions, features))
    return 0


def media(model: Any, seed: int = 0) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each medium that a model takes: its inputs, or why none could be made here."""
    for kind in KINDS:
        takes = placeholder(model.config, kind) is not None or hasattr(model, f"get_{kind}_features")
        if takes:
            try:
                yield kind, with_medium(model, kind, seed)
            except ValueError as error:
                yield kind, str(error)
