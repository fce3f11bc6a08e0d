"""One family in numbers: its small model wrapped, and compared with Hugging Face on text and on each of its media."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

import lensplug
from lensplug.families import FAMILIES as WITH_GEOMETRY
from support.eager import eager
from support.families.media import media, text_inputs
from support.families.processors import inputs_of, processor_of
from support.families.small import small_model
from support.models import largest_difference

EXACT = 1e-4
"""The largest difference that rounding explains in fp32, as a fraction of the largest value."""


@dataclass
class FamilyRow:
    """What the table says of one family."""

    family: str
    class_name: str = ""
    transformer_lens: str = field(default_factory=lambda: version("transformer-lens"))
    verdict: str = "refused"
    """One of `page.VERDICTS`, where they are explained."""
    engine: str = ""
    how: str = ""
    """On what the lens stands (`lens.proof.standing`): "tested family", or "proved" on load."""
    inputs: str = ""
    """What it was compared on: "text", and its media."""
    logits: float | None = None
    """The largest difference of a logit over all inputs and seeds."""
    scale: float | None = None
    """The largest logit."""
    patterns: float | None = None
    """The largest difference of a pattern from Hugging Face's eager attention; None where it returns none."""
    decomposition: float | None = None
    """How far the sum of `decompose_resid` is from Hugging Face's last residual, as a fraction of its largest value."""
    geometry: str = "none"
    reason: str = ""
    """Why it was refused, or what could not be tried."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compared(family: str, class_name: str, seeds: int = 1) -> FamilyRow:
    """Build it, wrap it, run it.

    Args:
        family: Its `model_type`.
        class_name: Of its model.
        seeds: How many random models.
    """
    row = FamilyRow(family, class_name, geometry="yes" if family in WITH_GEOMETRY else "none")
    for seed in range(seeds):
        try:
            model = small_model(family, seed)
        except Exception as error:  # any: a package that it needs, a configuration that is not known here
            row.verdict, row.reason = "not built", _what_is_missing(error)
            return row
        try:
            _compare(row, model, seed)
        except lensplug.LensplugError as refusal:
            row.verdict, row.reason = "refused", _one_line(refusal)
            return row
    return row


def _compare(row: FamilyRow, model: Any, seed: int) -> None:
    processor = processor_of(row.family, model.config)
    lens = lensplug.wrap(model, processor)
    row.engine = lens.engine
    row.how = lens.proof.standing
    row.verdict = "exact"
    tried: list[str] = []
    not_tried: list[str] = []
    given: Iterable[tuple[str, dict[str, Any] | str]]
    if processor is not None:  # it takes no words alone
        given = [inputs_of(processor, seed)]
    else:
        tried = ["text"]
        if note := _compare_on(row, lens, text_inputs(seed=seed)):
            not_tried.append(f"text: {note}")
        given = media(model, seed)
    for kind, inputs in given:
        if isinstance(inputs, str):
            not_tried.append(f"{kind} not tried ({inputs})")
        else:
            try:
                if note := _compare_on(row, lens, inputs):
                    not_tried.append(f"{kind}: {note}")
                tried.append(kind)
            except lensplug.LensplugError as refusal:
                row.verdict = "refused"
                not_tried.append(f"{kind}: {_one_line(refusal)}")
    row.inputs, row.reason = ", ".join(tried), "; ".join(not_tried)
    if row.verdict == "exact" and tried == ["text"]:
        row.verdict = "text only"


def _compare_on(row: FamilyRow, lens: Any, model_inputs: dict[str, Any]) -> str:
    """Adds the numbers of one input to the row; returns what could not be compared on it, and why."""
    model = lens.hf_model
    inputs = lens.encode(model_inputs)
    report = lens.check(inputs)
    row.logits = max(row.logits or 0.0, report.max_logit_difference)
    row.scale = max(row.scale or 0.0, report.logit_scale)
    logits, cache = lens.run_with_cache(inputs)
    with torch.no_grad():
        reference = model(**model_inputs, use_cache=False).logits
    row.logits = max(row.logits, largest_difference(logits, reference))
    last, attentions, eager = _hugging_faces(model, lens.core, model_inputs)
    parts = cache.decompose_resid().sum(0)
    apart = largest_difference(parts, last) / float(last.abs().max())
    row.decomposition = max(row.decomposition or 0.0, apart)
    # Patterns come from eager attention alone. Where its logits are not SDPA's, Hugging Face's two attentions compute
    # two things (PaliGemma on words: eager is causal there, SDPA sees all), and a lens can be only one of them.
    disagree = largest_difference(eager, reference)
    note = ""
    if not disagree <= EXACT * max(float(reference.abs().max()), 1.0):
        attentions = []
        note = f"no patterns compared, Hugging Face's own eager and SDPA logits differ by {disagree:.1e}"
    for layer, theirs in enumerate(attentions):
        if theirs is not None and theirs.ndim == 4 and f"blocks.{layer}.attn.hook_pattern" in cache:
            row.patterns = max(row.patterns or 0.0, largest_difference(cache["pattern", layer], theirs))
    exact = report.agrees and row.logits <= EXACT * max(row.scale, 1.0) and row.decomposition <= EXACT
    if not exact or (row.patterns or 0.0) > EXACT or row.logits != row.logits:
        row.verdict = "differs"
    return note


def _hugging_faces(model: Any, core: Any, model_inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor | None], Tensor]:
    """The last residual stream, before the last norm, and of eager attention the patterns, if any, and the logits."""
    streams: list[Tensor] = []
    with torch.no_grad():
        with core.decoder.layers[-1].register_forward_hook(
            lambda _, __, output: streams.append(output[0] if isinstance(output, tuple) else output)
        ):
            model(**model_inputs, use_cache=False)
        with eager(core.decoder):
            output = model(**model_inputs, use_cache=False, output_attentions=True)
    of_core = getattr(output, "language_model_outputs", None) or output  # BLIP-2's beside those of its encoders
    return streams[0], list(getattr(of_core, "attentions", None) or ()), output.logits


def _what_is_missing(error: Exception) -> str:
    package = re.search(r"`pip install ([\w-]+)`", str(error))
    return f"it needs a package that is not installed: pip install {package[1]}" if package else _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
