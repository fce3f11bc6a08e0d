"""Attentions of encoders as a cache: BERT's, ALBERT's, RoBERTa's, ViT's own, and what analyses make of them."""

from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np
import torch
from support.encoders import model as encoder
from support.tolerances import rounding

import lensplug
from fuzz import by_hand
from fuzz.case import Case, holds
from lensplug import analysis
from lensplug.analysis.attention.gradient_rollout import Contributions

CLASSIFIERS = ("BertForSequenceClassification", "AlbertForSequenceClassification")
NAMES = (*CLASSIFIERS, "RobertaModel", "ViTModel")

model = once(encoder)


def _inputs(case: Case, name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    batch = case.integer(1, 3)
    if name == "ViTModel":
        return {"pixel_values": case.normal(batch, 3, 24, 24)}, None
    length = case.integer(1, 12)
    ids, mask = torch.randint(5, 60, (batch, length), generator=case.generator), torch.ones(batch, length).long()
    for row in mask:
        row[case.integer(1, length) :] = 0
    return {"input_ids": ids, "attention_mask": mask}, mask


def _drawn(case: Case, names: tuple[str, ...], *, gradients: bool = False) -> tuple[Any, Any, torch.Tensor]:
    """Outputs of an encoder, the cache of its attentions, and which positions are not padding."""
    name = case.one_of(names)
    given, mask = _inputs(case, name)
    with torch.set_grad_enabled(gradients):
        outputs = model(name)(**given, output_attentions=True)
    cache = lensplug.cache_from_attentions(outputs.attentions, attention_mask=mask)
    if mask is None:
        mask = torch.ones(outputs.attentions[0].shape[::3][:1] + outputs.attentions[0].shape[-1:], dtype=torch.long)
    return outputs, cache, mask


def _allowed(attentions: Any) -> float:
    return rounding(torch.float32, len(attentions) * (2 * attentions[0].shape[-1] + attentions[0].shape[1] + 4))


@holds(weight=3)
def attentions_of_encoders_are_a_cache(case: Case) -> None:
    outputs, cache, mask = _drawn(case, NAMES)
    exclude = case.chance()
    rollout = analysis.attention_rollout(cache, exclude_first=exclude)
    for layer, attention in enumerate(outputs.attentions):
        case.same(cache["pattern", layer], attention, f"pattern {layer}")
    if mask.shape[1] > 1 and int(mask.sum(dim=1).min()) > 1:
        case.same(cache.model.cfg.attention_dir, "bidirectional", "direction")
    for example, row in enumerate(mask.numpy()):
        own = [attention[example].double().numpy().mean(0) for attention in outputs.attentions]
        first = int(np.argmax(row)) if exclude else None
        expected = by_hand.product([by_hand.mixture(one, exclude=first) for one in own])
        least = min(
            float(np.delete(one, first, 1).sum(-1).min()) if first is not None and len(row) > 1 else 1.0 for one in own
        )
        at = row.astype(bool)
        if least > 1e-3:
            case.close(rollout.values[example][at], expected[at], _allowed(outputs.attentions) / least, "rollout")


@holds(weight=2)
def gradients_of_encoders_are_autograds(case: Case) -> None:
    outputs, cache, mask = _drawn(case, CLASSIFIERS, gradients=True)
    label = case.integer(0, 1)
    target = outputs.logits[:, label].sum()
    grads = lensplug.grads_from_attentions(outputs.attentions, target=target)
    expected = torch.autograd.grad(target, outputs.attentions)
    contributions: Contributions = case.one_of(["positive", "negative", "signed"])
    first = case.chance()
    found = analysis.gradient_rollout(cache, grads, contributions=contributions, rows=0, exclude_first=first)
    for layer, gradient in enumerate(expected):
        case.same(grads["pattern", layer], gradient, f"gradient {layer}")
    for example, row in enumerate(mask.numpy()):
        both = np.outer(row, row)
        both[:, 0] *= not first
        pairs = [
            (attention[example].detach().double().numpy(), gradient[example].double().numpy())
            for attention, gradient in zip(outputs.attentions, expected, strict=True)
        ]
        own = [both * by_hand.cams(*pair, contributions) for pair in pairs]
        size = by_hand.relevance([both * by_hand.cams(one, np.abs(other), "positive") for one, other in pairs], False)
        allowed = _allowed(outputs.attentions) * float(size.max())
        case.close(found.values[example, 0], by_hand.relevance(own, False)[0], allowed, "R")
