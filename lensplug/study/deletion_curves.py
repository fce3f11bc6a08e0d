"""Deletion curves of a study's examples: a map of each, made by the analysis that is named, and what it finds.

Each example is prepared and mapped alone: in a batch, rounding could put two positions that are nearly equal into
another order, and its curve would depend on who is beside it. Its random orders are drawn from its id, so that they are
the same in every batch, and others than those of other examples. Together run what is deleted of one example.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lensplug import analysis
from lensplug.errors import LensplugError, LensplugWarning
from lensplug.study.media import Media, by_kind
from lensplug.validation.arguments import described

RelevanceMap = Literal["gradient_rollout", "attention_rollout", "attention_from"]
"""The analysis that makes the map: gradient rollout, the lift of attention rollout, or attention, the mean over layers
and heads."""
HINTS: Mapping[str, Any] = {"relevance": RelevanceMap, "target": str | int | Sequence[str | int], "seed": int}
"""Options that a study takes otherwise than the analysis."""
DEFAULTS: Mapping[str, Any] = {"relevance": "gradient_rollout", "target": {"column": "target"}}
"""Of a column the text of each example is its answer, whose tokens are summed over."""


def refuse(options: Mapping[str, Any]) -> None:
    """Refuse options that do not go together.

    Raises:
        LensplugError: If a target is no pair, another option is a column, or answers are given a position.
    """
    for name, value in options.items():
        if name != "target" and not isinstance(value, str | int | list | tuple):
            raise LensplugError(f"{name} is {described(value)}, and only target may differ between examples: give one.")
    target = options.get("target", DEFAULTS["target"])
    if isinstance(target, list | tuple) and len(target) != 2:
        raise LensplugError(
            f"target is a list of {len(target)}, expected a pair, for the difference of two tokens: give a word, an id,"
            " a pair of them, or study.column('target')."
        )
    if not isinstance(target, str | int | list | tuple) and "position" in options:
        raise LensplugError(
            "position says where the probability of one token is read, and answers of a column are read where each of"
            " their tokens is: leave it out, or give target= a word."
        )


def measured(
    lens: Any, rows: pd.DataFrame, media: Sequence[Media], options: Mapping[str, Any]
) -> analysis.DeletionCurve:
    """The curves of a batch.

    Args:
        lens: The model.
        rows: The examples.
        media: Of each.
        options: Those of the measurement, with defaults.

    Raises:
        LensplugError: If an example has no answer, no map can be made, or there is nothing to delete.
    """
    examples = zip(rows.to_dict("records"), media, strict=True)
    curves = [_curve(lens, row, of_example, options, len(rows)) for row, of_example in examples]
    return analysis.DeletionCurve.combine(curves) if len(curves) > 1 else curves[0]


def seed_of(example: str, seed: int) -> int:
    """The seed of an example's random orders.

    Args:
        example: Its id.
        seed: Of the measurement.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {example}".encode()).digest()[:7], "big")


def _curve(
    lens: Any, row: Mapping[str, Any], media: Media, options: Mapping[str, Any], batch_size: int
) -> analysis.DeletionCurve:
    further = {name: value for name, value in options.items() if name not in ("relevance", "target", "seed")}
    target, answer = options["target"], None
    if isinstance(target, Mapping):
        answer = row[target["column"]]
        if not isinstance(answer, str) or not answer:
            raise LensplugError(
                f"the example has no {target['column']!r} to be watched: add examples with this column, or give target="
                " a word."
            )
    inputs = lens.prepare([row["prompt"]], **by_kind([media]), **({} if answer is None else {"answer": answer}))
    watched: Any = inputs if answer is not None else tuple(target) if isinstance(target, list) else target
    read_at = _before_each_token(inputs) if answer is not None else [options.get("position", -1)]
    relevance = MAPS[options["relevance"]](lens, inputs, watched, read_at)[None]
    seed = [seed_of(row["id"], options.get("seed", 0))]
    with warnings.catch_warnings():
        # How long one example takes says nothing of a study, whose progress does.
        warnings.filterwarnings("ignore", message="deletion_curve: .* runs to come", category=LensplugWarning)
        curve = analysis.deletion_curve(lens, inputs, relevance, watched, seed=seed, batch_size=batch_size, **further)
    convention = f"{curve.provenance.convention}; in the order of {options['relevance']}"
    return replace(curve, provenance=replace(curve.provenance, convention=convention))


def _before_each_token(inputs: Any) -> list[int]:
    """Where the tokens of an answer are told: the position before each."""
    return [int(position) - 1 for position in inputs.modality.mask("generated")[0].nonzero()[:, 0]]


def _gradient_rollout(lens: Any, inputs: Any, target: Any, read_at: list[int]) -> Float[Tensor, " pos"]:
    """Of the target; of an answer the mean over the rows at which its tokens are told."""
    position = {} if target is inputs else {"position": read_at[0]}
    _, cache, grads = lens.run_with_gradients(inputs, target=target, keep="gradient_rollout", **position)
    return analysis.gradient_rollout(cache, grads, rows=read_at).relevance[0].mean(dim=0)


def _attention_rollout(lens: Any, inputs: Any, target: Any, read_at: list[int]) -> Float[Tensor, " pos"]:
    """The lift over uniform attention."""
    _, cache = lens.run_with_cache(inputs, needs=[], keep="rollout", logit_positions=[-1])
    return analysis.attention_rollout(cache, rows=read_at).lift[0].mean(dim=0)


def _attention_from(lens: Any, inputs: Any, target: Any, read_at: list[int]) -> Float[Tensor, " pos"]:
    """The mean over layers and heads."""
    _, cache = lens.run_with_cache(
        inputs, needs=[analysis.attention_from], query_positions=read_at, logit_positions=[-1]
    )
    return analysis.attention_from(cache, queries=read_at).values[0].mean(dim=(0, 1, 2))


MAPS: dict[str, Callable[[Any, Any, Any, list[int]], Float[Tensor, " pos"]]] = {
    "gradient_rollout": _gradient_rollout,
    "attention_rollout": _attention_rollout,
    "attention_from": _attention_from,
}
"""The lens, one example, what is watched and where it is told -> a value for each position."""
