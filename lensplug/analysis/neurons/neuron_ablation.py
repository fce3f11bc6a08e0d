"""Neuron ablation: does an answer need some neurons, more than as many others of the same layers?

Method:

1. Read log p(answer | prompt) = Σᵢ log p(tᵢ | prompt, t₁ … tᵢ₋₁) of each example's given answer, in one run, and the
   token that the model would write in place of each tᵢ (the largest logit). The answer is right if all of these are its
   tokens: then the model, writing greedily, writes it.
2. Deactivate the chosen neurons N: h[l, pos, i] = v for all (l, i) ∈ N, where h is `mlp.hook_post`, what the output
   matrix of the MLP receives, and v = 0. Read the same again. In a gated MLP h = act(gate) · linear, so that h = 0 is
   an activation act(gate) of 0, as in the paper.
3. Deactivate random sets R₁ … R_D in place of N: in each layer as many neurons as N has there, none of them in N.
4. effect = log p with deactivated neurons - log p with none, in nats. The neurons matter if the effect of N is further
   below 0 than that of the random sets: beyond_random = effect(N) - mean over d of effect(R_d).

With value="mean", v is the mean of h[l, ·, i] over the positions that are deactivated, of all examples: an activation
that occurs, where 0 need not.

When to use it: after `domain_neurons`, or for any other set of neurons, to ask whether the model uses them, and whether
those of one domain matter for its examples alone (`study.result("neuron_ablation").mean(by="domain")`).

When not to use it: with a set so large that any such set ruins the model (the random sets say so); or to conclude from
no effect that neurons do nothing, since others may do the same. A random neuron is no neuron of the same activity: a
set of often active neurons may matter more than random ones for that alone.

Source: Huo et al. 2024, "MMNeuron: Discovering Neuron-Level Domain-Specific Interpretation in Multimodal Large Language
Model", EMNLP 2024 (deactivated: activation set to zero); random selection as the baseline of Tang et al. 2024,
"Language-Specific Neurons", arXiv 2402.16438.

Example:
    examples = [analysis.Example("What is the color? Answer single word.", "Red", images=[picture])]
    result = analysis.neuron_ablation(lens, examples, [(0, 5), (1, 7), (1, 9)], draws=3)
    result.summary()                         # none, chosen, random: log-probability, right, changed
    result.beyond_random                     # [example]: below 0, the chosen neurons matter more than random ones
    views.neuron_ablation(result)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lensplug.analysis.interventions.ablation_run import Example
from lensplug.analysis.interventions.given_answers import refuse_without_answers
from lensplug.analysis.neurons.ablated_answers import AnswersOfRuns
from lensplug.analysis.neurons.deactivation import mlp_shape
from lensplug.analysis.neurons.neuron_sets import Neurons, chosen_neurons, random_neurons
from lensplug.analysis.over_examples import OverExamples
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import PositionsName
from lensplug.validation.arguments import at_least, checked

if TYPE_CHECKING:
    import pandas as pd

Condition = Literal["none", "chosen", "random"]
"""Which neurons are deactivated: none, the chosen, or as many random ones of the same layers."""
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
MOST_DRAWS = 1000
"""More would take days, and tell no more."""


@dataclass(frozen=True, repr=False)
class NeuronAblation(Result):
    """Given answers with no neurons deactivated, with the chosen ones, and with random sets of as many.

    The axis "run" has one entry for none, one for the chosen neurons, and one for each random set.
    """

    label_columns = ("example", "condition", "draw", "prompt", "answer")
    main_number = "log_probability"
    example_depth = {"examples": 0, "answers": 0, "predicted": 1}

    log_probability: Float[Tensor, "run example"]
    """Of the whole answer, in nats."""
    right: Bool[Tensor, "run example"]
    """Whether the model, writing greedily, writes the answer."""
    changed: Bool[Tensor, "run example"]
    """Whether the likeliest token is another at any place of the answer than with none deactivated."""
    predicted: tuple[tuple[str, ...], ...]
    """For each run and example, the likeliest token at each place of the answer, as one text."""
    examples: tuple[str, ...]
    """The prompts."""
    answers: tuple[str, ...]
    neurons: tuple[tuple[int, int], ...]
    """The chosen (layer, neuron), in order."""
    where: tuple[str, ...]
    """At the positions of which modalities they were deactivated; () at all."""
    provenance: Provenance

    @property
    def draws(self) -> int:
        """How many random sets there were."""
        return len(self.log_probability) - 2

    @property
    def effect(self) -> Float[Tensor, "run example"]:
        """How much the log-probability of the answer rises by deactivating, in nats; below 0 the answer needs them."""
        return self.log_probability - self.log_probability[:1]

    @property
    def beyond_random(self) -> Float[Tensor, " example"]:
        """The effect of the chosen neurons minus the mean effect of the random sets, in nats."""
        effect = self.effect.double()
        return effect[1] - effect[2:].mean(dim=0)

    def by_condition(self, values: Shaped[Tensor, "run example"]) -> Float[Tensor, "condition example"]:
        """Values of each run as those of none, chosen, and the mean over the random sets."""
        wide = values.double()
        return torch.cat([wide[:2], wide[2:].mean(dim=0, keepdim=True)])

    def summary(self) -> pd.DataFrame:
        """For each condition, means over examples.

        The log-probability of the answer; the effect on it with its standard error over examples, and the standard
        deviation of the random sets' mean effects; the fractions right and changed; of the chosen neurons, the effect
        beyond random, with its standard error over examples.
        """
        import pandas as pd

        effect, beyond = self.by_condition(self.effect), self.beyond_random
        between_sets = self.effect[2:].double().mean(dim=1)
        spread = float(between_sets.std()) if self.draws > 1 else math.nan
        return pd.DataFrame(
            {
                "log_probability": self.by_condition(self.log_probability).mean(dim=1).tolist(),
                "effect": effect.mean(dim=1).tolist(),
                "standard_error": [math.nan, *(standard_error(row) for row in effect[1:])],
                "spread_over_draws": [math.nan, math.nan, spread],
                "right": self.by_condition(self.right).mean(dim=1).tolist(),
                "changed": self.by_condition(self.changed).mean(dim=1).tolist(),
                "beyond_random": [math.nan, float(beyond.mean()), math.nan],
                "beyond_random_standard_error": [math.nan, standard_error(beyond), math.nan],
                "neurons": [0, len(self.neurons), len(self.neurons)],
                "draws": [1, 1, self.draws],
                "examples": len(self.examples),
            },
            index=pd.Index(CONDITIONS, name="condition"),
        )

    def over_examples(self) -> OverExamples:
        """Of each condition: the answer's log-probability, the effect on it, whether it is right and has changed.

        Of the random sets their mean, so that `right` may be a fraction.
        """
        numbers = {
            "log_probability": self.log_probability,
            "effect": self.effect,
            "right": self.right,
            "changed": self.changed,
        }
        return OverExamples(
            {"condition": list(CONDITIONS)}, {name: self.by_condition(value).T for name, value in numbers.items()}
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example and run; `draw` counts the random sets from 0."""
        import pandas as pd

        effect = self.effect
        runs = [("none", 0), ("chosen", 0), *(("random", draw) for draw in range(self.draws))]
        return pd.DataFrame(
            {
                "example": example,
                "condition": condition,
                "draw": draw,
                "prompt": self.examples[example],
                "answer": self.answers[example],
                "predicted": self.predicted[run][example],
                "log_probability": float(self.log_probability[run, example]),
                "effect": float(effect[run, example]),
                "right": bool(self.right[run, example]),
                "changed": bool(self.changed[run, example]),
            }
            for example in range(len(self.examples))
            for run, (condition, draw) in enumerate(runs)
        )


def standard_error(values: Float[Tensor, " example"]) -> float:
    """Of a mean over examples; NaN of a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


@checked
def neuron_ablation(
    lens: Lens,
    examples: Sequence[Example],
    neurons: Neurons,
    *,
    draws: int = 5,
    value: float | Literal["mean"] = 0.0,
    where: PositionsName | Sequence[PositionsName] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> NeuronAblation:
    """Deactivate neurons while the model reads given answers, and as many random ones of the same layers.

    Each batch is prepared once and run 2 + `draws` times, at the speed of `lens.logits_at`.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        examples: Prompts with media, each with the answer (a text) that is looked at: a right answer, or what
            `lens.generate` wrote.
        neurons: (layer, neuron) pairs, such as `domain_neurons(...).of("flowers")`, or a mask `[layer neuron]`.
        draws: How many random sets, 1 to 1000; their spread says how much one set differs from another.
        value: What deactivated neurons give to the output matrix: 0, another number, or "mean", each neuron's own mean
            over the deactivated positions of all examples.
        where: Deactivate at the positions of this modality alone ("image"), or of several; "media" is every image,
            video and audio position, "generated" the answer. At all positions by default.
        batch_size: How many prompts run at once.
        seed: Random seed of the random sets, which depend on nothing else but the chosen neurons.
        progress: Called with a few words before each batch.

    Returns:
        Log-probabilities and predictions under the three conditions.

    Raises:
        LensplugError: If there are no examples or neurons, an example has no answer or no position of `where`, a neuron
            is not there or is given twice, or more than half of a layer's neurons are chosen.
    """
    at_least(1, batch_size=batch_size, draws=draws)
    if draws > MOST_DRAWS:
        raise LensplugError(f"draws is {draws}, expected at most {MOST_DRAWS}: each runs every example once.")
    if not isinstance(value, str) and not math.isfinite(value):
        raise LensplugError(f"value is {value}, expected a finite number, or 'mean'.")
    names = () if where is None else (where,) if isinstance(where, str) else tuple(where)
    if where is not None and not names or "pad" in names:
        raise LensplugError(f"where is {where!r}: name modalities that the model reads, or leave it out for all.")
    refuse_without_answers(examples)
    chosen = chosen_neurons(neurons, *mlp_shape(lens.model))
    runs = AnswersOfRuns(lens, examples, [chosen, *random_neurons(chosen, draws, seed)], names, batch_size, progress)
    read = runs.read(value)
    pairs = tuple((layer, neuron) for layer, neuron in chosen.nonzero().tolist())
    at = f"{' and '.join(names)} positions" if names else "all positions"
    return NeuronAblation(
        log_probability=read.log_probability,
        right=read.right,
        changed=read.changed,
        predicted=read.predicted,
        examples=tuple(example.text for example in examples),
        answers=tuple(str(example.answer) for example in examples),
        neurons=pairs,
        where=names,
        provenance=Provenance.of_model(
            lens.model,
            "neuron_ablation",
            f"mlp.hook_post of neurons set to {value if isinstance(value, str) else f'{value:g}'} at {at},"
            " log-probability of given answers; control: as many random neurons of the same layers",
            options={"seed": seed, "draws": draws},
        ),
    )
