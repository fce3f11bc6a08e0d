"""Answers with and without the image: each log-probability is Hugging Face's, each score a count by hand."""

from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np
import torch
from support.models import scene
from support.tolerances import rounding, through_layers

import lensplug
from fuzz.case import Case, holds
from lensplug import analysis
from lensplug.analysis.interventions.ablation_run import Method
from lensplug.analysis.interventions.modality_ablation import Condition

COLOURS = ("Red", "Blue", "Green", "Yellow")
CONDITIONS: tuple[Condition, ...] = ("with", "without", "control")


@once
def _lens() -> Any:
    return lensplug.tiny.llava_onevision()


@holds(weight=0.3)
def scores_of_an_ablation_are_counts(case: Case) -> None:
    lens = _lens()
    pictures = [scene(32, 32, case.integer(0, 10**6)) for _ in range(case.integer(1, 4))]
    prompt = case.one_of(["What is the color? Answer single word.", "The color?"])
    answers = [case.one_of(COLOURS) for _ in pictures]
    examples = [
        analysis.Example(prompt, answer, images=[picture]) for answer, picture in zip(answers, pictures, strict=True)
    ]
    method: Method = case.one_of(["remove", "zero", "mean"])
    found = analysis.modality_ablation(
        lens, examples, modality="image", method=method, classes=COLOURS, batch_size=case.integer(1, 4)
    )
    ids = {answer: lens.tokenizer.convert_tokens_to_ids(lens.tokenizer.tokenize(answer))[0] for answer in COLOURS}
    for example, (answer, picture) in enumerate(zip(answers, pictures, strict=True)):
        inputs = lens.prepare(prompt, images=[picture])
        with torch.no_grad():
            logits = lens.hf_model(**inputs.model_inputs, use_cache=False).logits[0, -1]
        allowed = 4 * rounding(torch.float32, through_layers(lens.model.cfg, inputs.tokens.shape[1]), logits)
        expected = logits.double().log_softmax(-1)[ids[answer]]
        case.close(found.log_probability[0, example], expected, allowed, "log-probability with the image")
        if method == "remove":
            is_kept = ~inputs.modality.mask("image")[0]
            with torch.no_grad():
                bare = lens.hf_model.lm_head(
                    lens.hf_model.model.language_model(inputs_embeds=inputs.embeds[:, is_kept]).last_hidden_state
                )[0, -1]
            expected = bare.double().log_softmax(-1)[ids[answer]]
            case.close(found.log_probability[1, example], expected, allowed, "log-probability without it")
        three = torch.tensor([logits[ids[name]] for name in COLOURS]).topk(2)
        if float(three.values[0] - three.values[1]) > allowed:
            case.same(int(found.predicted[0, example]), int(three.indices[0]), "answer with the image")
    right = np.array([COLOURS.index(answer) for answer in answers])
    predicted = found.predicted.numpy()
    for index, condition in enumerate(CONDITIONS):
        case.close(
            found.accuracy[condition],
            (predicted[index] == right).mean(),
            rounding(torch.float32, len(right)),
            f"accuracy {condition}",
        )
        table, moved = (np.zeros((len(COLOURS), len(COLOURS)), dtype=int) for _ in range(2))
        for example in range(len(right)):
            table[right[example], predicted[index, example]] += 1
            moved[predicted[0, example], predicted[index, example]] += 1
        case.same(found.confusion(condition).to_numpy(), table, f"confusion {condition}")
        case.same(found.transitions(condition).to_numpy(), moved, f"transitions {condition}")
    case.same(found.changed, predicted != predicted[:1], "changed")
