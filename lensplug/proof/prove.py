"""`prove`: a wrapped core against the very model that it was made of, check by check, before it is used.

Steps.

1. A short prompt of ordinary tokens, a batch of it padded at the left, and a small picture, sound and video of our own
   where the lens's processor can make an input of them.
2. Weights in half precision are copied to float32, in both models, for as long as the checks last.
3. Masks and rotations that the layers are given, at more positions than the longest window (`given_checks`).
4. Each norm alone (`norm_checks`), each layer alone, on the same streams in both models (`layer_checks`).
5. Whole runs: residual streams, logits, patterns, rows of patterns, the sum of `decompose_resid` (`forward_checks`), on
   text, on the padded batch, and on the media.
6. An edit of every kind of hook in a layer of each kind (`edit_checks`), gradients (`gradient_checks`), and greedy
   tokens behind a key-value cache (`generation_checks`).

What it proves: on these inputs the wrapped core is Hugging Face's eager model, within float32 rounding; its hooks are
where they say, and act. What it does not: positions beyond those that were run (masks and rotations excepted), experts
that no token of the prompts was sent to, media of other shapes, and kernels of another device or dtype than these.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.lead import Lead
from lensplug.hf.run_lock import turn
from lensplug.proof import (
    edit_checks,
    forward_checks,
    generation_checks,
    given_checks,
    gradient_checks,
    layer_checks,
    norm_checks,
    prompts,
)
from lensplug.proof.forward_checks import Run
from lensplug.proof.full_precision import HALF, full_precision
from lensplug.proof.measures import TOLERANCE, attempted
from lensplug.proof.pair import Pair
from lensplug.proof.prompts import NO_LEAD, Prompt
from lensplug.proof.report import Check, Proof, concluded

PADDING = 5
"""Padding at the left of the second row of the padded batch."""


def prove(
    hf_model: Any, core: LanguageCore, model: Any, *, engine: engines.EngineName, lens: Any = None, lead: Lead = NO_LEAD
) -> Proof:
    """Prove a wrapped core on load.

    Args:
        hf_model: The full model.
        core: Its language core.
        model: The wrapped core.
        engine: The engine that made it.
        lens: The lens, whose processor makes inputs of media; None: text alone.
        lead: What words have to stand behind for the full model.

    Returns:
        Every check, whatever became of it. Nothing raises.
    """
    begun = time.perf_counter()
    pair = Pair(hf_model, core, model, engine, lead)
    with turn(core.decoder.config), torch.inference_mode(False), torch.no_grad():
        seen = _media_prompts(core, lens)  # encoders compute in the model's own dtype
        whole_rotations = engine == "bridge" or core.dtype not in HALF
        if whole_rotations:
            with full_precision(core, model) as whole:
                checks = _checks(pair, seen, TOLERANCE[torch.float32], whole)
            dtype = torch.float32 if core.dtype in HALF else core.dtype
        else:
            checks = _checks(pair, seen, TOLERANCE[core.dtype], True)
            why = "a HookedTransformer holds its rotations in the model's dtype"
            checks.append(Check("float32 of the same weights", "not proved", why=why))
            dtype = core.dtype
    name = str(dtype).removeprefix("torch.")
    return concluded(core.name, engine, name, checks, time.perf_counter() - begun)


def _checks(pair: Pair, media: Sequence[Prompt | Check], tolerance: float, whole: bool) -> list[Check]:
    checks = attempted([given_checks.NAME], lambda: given_checks.checks(pair, tolerance))
    checks += attempted([norm_checks.NAME], lambda: norm_checks.checks(pair, tolerance))
    runs: list[Run] = []
    text_of = partial(prompts.text, pair.hf_model, pair.core, lead=pair.lead)

    def run_of(prompt: Prompt, parts_of: Sequence[int] = ()) -> Run:
        runs.append(Run.of(pair, prompt, parts_of))
        return runs[-1]

    def whole_text() -> Sequence[Check]:
        return forward_checks.checks(pair, run_of(text_of(), range(len(pair.layers))), tolerance)

    def alone() -> Sequence[Check]:
        examples = text_of(prompts.MEDIUM, batch=len(layer_checks.SIZES) + 1)
        return layer_checks.checks(pair, examples, tolerance, runs[0].entering)

    first = attempted(["run of text"], whole_text)
    if not runs:
        return checks + first
    checks += attempted(["each layer alone"], alone) + first

    def left_padded() -> Sequence[Check]:
        run = run_of(text_of(padding=PADDING))
        return [*forward_checks.checks(pair, run, tolerance), *forward_checks.alike_unpadded(run, tolerance)]

    def edited() -> Sequence[Check]:
        layers = forward_checks.layers_of_kinds(pair, runs[0])
        edits = edit_checks.edits_of(pair, layers)
        many = text_of(prompts.SHORT, batch=len(edits) + 1)
        return edit_checks.checks(pair, many, edits, runs[0], tolerance)

    checks += attempted(["left padding"], left_padded) + attempted(["edits"], edited)
    if whole:
        checks += attempted(["gradients"], lambda: gradient_checks.checks(pair, text_of(prompts.MEDIUM), tolerance))
    else:
        checks.append(Check("gradients", "not proved", why="float32 copies of all weights do not fit into free memory"))

    def generated() -> Sequence[Check]:
        seen = tuple(runs)
        padded = text_of(prompts.MEDIUM, padding=PADDING // 2)
        return generation_checks.checks(pair, padded, tolerance, lambda: max(run.explains("logits") for run in seen))

    checks += attempted(["generation"], generated)
    for prompt in media:
        if isinstance(prompt, Check):
            checks.append(prompt)
        else:
            name = f"run of {prompt.name}"
            checks += attempted([name], lambda given=prompt: forward_checks.checks(pair, run_of(given), tolerance))  # type: ignore[misc]
    return checks


def _media_prompts(core: LanguageCore, lens: Any) -> list[Prompt | Check]:
    """A prompt with each medium that the model takes, or why there is none."""
    found: list[Prompt | Check] = []
    for kind in core.placeholder_ids:
        try:
            if lens is None or lens.processor is None:
                raise LensplugError("there is no processor to make an input of it")
            found.append(prompts.media(lens, kind))
        except Exception as error:  # noqa: BLE001, whatever a processor raises
            why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            found.append(Check(f"{kind} input", "not proved", why=why))
    return found
