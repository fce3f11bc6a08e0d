"""Deletion curves: does a relevance map find what the answer depends on?

Method:

1. Rank the positions of the image or sound by their relevance.
2. Delete them in growing fractions f, most relevant first, and in another run least relevant first. Deleted positions
   are knocked out: no query attends to them (attention knockout), and their embeddings are replaced by the mean.
3. Record the target's log-probability y(f), and the area under each curve, ∫ y(f) df for f from 0 to 1, in nats
   (trapezoidal rule).
4. Repeat for random orders: the baseline.

A faithful map makes y fall early for "most relevant first" and late for "least relevant first". A map whose areas lie
within the range of random orders carries no information, however it looks.

Papers: Samek et al. 2017, "Evaluating the visualization of what a deep neural network has learned", arXiv 1509.06321;
for rollouts, Chefer, Gur & Wolf 2021, arXiv 2103.15679.

When to use it: to test a map before interpreting it, and to compare maps on the same examples; over a data set, as a
measurement of a study (`study.measure(analysis.deletion_curve, relevance="gradient_rollout")`).

When not to use it: a prompt with half an image is out of distribution, so part of a drop can be an artifact of that
(Hooker et al. 2019, "A Benchmark for Interpretability Methods in Deep Neural Networks", arXiv 1806.10758). Redundant
information is missed only once all copies are deleted. Compare maps on the same examples, targets and positions only.

Example:
    rollout = analysis.attention_rollout(cache, rows=-1)
    curve = analysis.deletion_curve(lens, inputs, rollout, target="Red", steps=2, draws=2)
    curve.area                                       # order -> nats, per example
    analysis.DeletionCurve.combine([curve, curve]).summary()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.interventions.runtime_warning import announce
from lensplug.analysis.over_examples import OverExamples, grid
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result, one_row
from lensplug.errors import LensplugError
from lensplug.inputs.edited_inputs import in_place
from lensplug.inputs.logit_targets import LogitTarget, Terms, Written, terms_of
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.by_modality import Where, mask_at, named
from lensplug.validation.arguments import checked

if TYPE_CHECKING:
    import pandas as pd
ORDERS = ("most relevant first", "least relevant first", "random")
"""What the orders of deletion are called."""
MOST_VARIANTS = 100_000
"""Maximum number of variants of one example: their masks are made before the first is run."""


@dataclass(frozen=True, repr=False)
class DeletionCurve(Result):
    """The target's log-probability while positions are deleted, in three orders."""

    label_columns = ("example", "order", "fraction")
    main_number = "log_probability"

    fractions: Float[Tensor, " step"]
    """Fractions of the positions that are deleted, from 0 to 1."""
    most_first: Float[Tensor, "example step"]
    """In nats, with the most relevant deleted first."""
    least_first: Float[Tensor, "example step"]
    random: Float[Tensor, "example draw step"]
    """In orders drawn at random."""
    deleted: Int[Tensor, " example"]
    """How many positions of each example there were to delete."""
    provenance: Provenance

    @property
    def area(self) -> dict[str, Float[Tensor, " example"]]:
        """The area under each curve, in nats (the mean along it); of random orders, the mean of the draws.

        The smaller with the most relevant first, and the larger with the least relevant first, the better the map.
        """
        curves = dict(zip(ORDERS, (self.most_first, self.least_first), strict=False))
        if self.random.shape[1]:
            curves[ORDERS[2]] = self.random.mean(dim=1)
        return {name: torch.trapezoid(curve, self.fractions, dim=-1) for name, curve in curves.items()}

    @property
    def random_interval(self) -> Float[Tensor, "example 2"]:
        """The 95% range of areas of random orders (mean ± 1.96 standard deviations); NaN for fewer than two."""
        areas = torch.trapezoid(self.random, self.fractions, dim=-1)
        if areas.shape[1] < 2:
            return torch.full((len(areas), 2), torch.nan)
        spread = 1.96 * areas.std(dim=1)
        return torch.stack([areas.mean(dim=1) - spread, areas.mean(dim=1) + spread], dim=1)

    def over_examples(self) -> OverExamples:
        """Log-probability in each order (of random ones the mean) at each fraction, and how far below random it is.

        Averaged over "fraction", they are the area under each curve and the area between it and that of random orders.
        """
        random = self.random.mean(dim=1)  # NaN where none was drawn
        curves = torch.stack([self.most_first, self.least_first, random], dim=1).double()
        below = random[:, None].double() - curves
        below[:, 2] = torch.nan  # itself
        widths = self.fractions.double().diff()
        nothing = widths.new_zeros(1)
        weights = (torch.cat([widths, nothing]) + torch.cat([nothing, widths])) / 2  # of the trapezoidal rule
        return OverExamples(
            grid(order=(*ORDERS[:2], "random order"), fraction=self.fractions.double().round(decimals=6).tolist()),
            {"log_probability": curves.flatten(1), "below_random": below.flatten(1)},
            {"fraction": weights.repeat(len(ORDERS)).tolist()},
        )

    def summary(self) -> pd.DataFrame:
        """For each order the mean area over the examples, and its 95% interval (1.96 standard errors)."""
        import pandas as pd

        rows = {}
        for order, areas in self.area.items():
            error = areas.std() / len(areas) ** 0.5 if len(areas) > 1 else torch.tensor(torch.nan)
            mean = float(areas.mean())
            rows[order] = {"area": mean, "low": mean - 1.96 * float(error), "high": mean + 1.96 * float(error)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("order").assign(examples=len(self.deleted))

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, order and step; orders drawn at random are numbered."""
        import pandas as pd

        orders = dict(zip(ORDERS, (self.most_first, self.least_first), strict=False))
        orders |= {f"random {draw}": self.random[:, draw] for draw in range(self.random.shape[1])}
        return pd.DataFrame(
            {
                "example": example,
                "order": name,
                "fraction": float(fraction),
                "log_probability": float(curve[example, step]),
            }
            for example in range(len(self.deleted))
            for name, curve in orders.items()
            for step, fraction in enumerate(self.fractions)
        )


@checked
def deletion_curve(
    lens: Lens,
    inputs: MultimodalInput,
    relevance: Result | Float[Tensor, " *example pos"],
    target: LogitTarget,
    *,
    position: int = -1,
    among: Where = "media",
    steps: int = 10,
    draws: int = 10,
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
) -> DeletionCurve:
    """Delete positions in the order of their relevance, and in random orders.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        inputs: From `prepare` or `encode` (`answer.inputs` for an answer).
        relevance: A value for each position of each example, or a result that has one (a rollout of one row: its lift;
            a gradient rollout; a flow; received attention); only its order among the deleted positions counts, and
            equal values are put in a random order.
        target: What is watched: a word that is one token, an id, ids `[example]`, a pair (the difference of two
            log-probabilities), or an answer (the sum over its tokens).
        position: Where a token's probability is read; negative ones count from the last that is not padding.
        among: Which positions are deleted: "media" (every image, video and audio position), a modality, several, or a
            mask `[example pos]`.
        steps: In how many equal steps.
        draws: How many random orders; 0 for none (for other maps of examples whose random orders are known).
        seed: Random seed of the orders; or one for each example, whose orders then do not depend on those beside it.
        batch_size: How many variants run at once, of all examples together.

    Raises:
        LensplugError: If relevance does not fit the inputs or holds NaN where it is read, there is nothing to delete,
            or the target is not exactly one token.
    """
    if isinstance(relevance, Result):
        relevance = torch.stack([one_row(relevance, example, "relevance") for example in range(len(inputs))])
    values = relevance[None] if relevance.ndim == 1 else relevance
    if tuple(values.shape) != tuple(inputs.tokens.shape):
        raise LensplugError(
            f"relevance has the shape {list(relevance.shape)}, the inputs {list(inputs.tokens.shape)}: give one value"
            " for each position of each example."
        )
    if steps < 1 or draws < 0 or batch_size < 1:
        raise LensplugError(f"steps={steps}, draws={draws}, batch_size={batch_size}: expected at least 1, 0 and 1.")
    if (variants := (2 + draws) * (steps + 1)) > MOST_VARIANTS:
        raise LensplugError(f"steps={steps} and draws={draws} make {variants} runs of each example: take fewer.")
    terms = terms_of(target, position, inputs, lens.tokenizer, lens.model.cfg.d_vocab_out)
    chosen, deleted_name = _among(among, inputs)
    values = values.to(chosen.device).float()
    if bool((values.isnan() & chosen).any()):
        raise LensplugError("relevance is NaN at positions that are to be deleted: give among= a mask of those it has.")
    fractions = torch.linspace(0, 1, steps + 1)
    deleted = []
    for example, generator in enumerate(_generators(seed, len(inputs))):
        orders = _orders(values[example], chosen[example], draws, generator)
        cuts = (fractions * orders.shape[1]).round().long()
        rank = torch.full((len(orders), values.shape[1]), orders.shape[1], device=orders.device)
        rank.scatter_(1, orders, torch.arange(orders.shape[1], device=orders.device).expand_as(orders))
        deleted.append((rank[:, None] < cuts.to(rank.device)[None, :, None]).flatten(0, 1))  # [order-step pos]
    curves = _log_probabilities(lens, inputs, torch.stack(deleted), chosen, terms, batch_size)
    stacked = curves.reshape(len(inputs), 2 + draws, steps + 1)
    where_read = "over the answer" if isinstance(target, Written | MultimodalInput) else f"at position {position}"
    convention = f"{deleted_name} hidden from attention and replaced by their mean, nats {where_read}"
    return DeletionCurve(
        fractions=fractions,
        most_first=stacked[:, 0],
        least_first=stacked[:, 1],
        random=stacked[:, 2:],
        deleted=chosen.sum(dim=1).cpu(),
        provenance=Provenance.of_model(lens.model, "deletion_curve", convention),
    )


def _generators(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """The generator of each example: one for all, or for each its own.

    Raises:
        LensplugError: If there is another number of seeds.
    """
    if isinstance(seed, int):
        return [torch.Generator().manual_seed(seed)] * count
    if len(seed) != count:
        raise LensplugError(f"seed has {len(seed)} entries for {count} examples: give one number, or one for each.")
    return [torch.Generator().manual_seed(of_example) for of_example in seed]


def _among(among: Where, inputs: MultimodalInput) -> tuple[Bool[Tensor, "example pos"], str]:
    """The positions that are deleted, and what they are called."""
    requested = mask_at(among, inputs, inputs.tokens.shape, "among").to(inputs.tokens.device)
    chosen, names = requested & inputs.attention_mask.bool(), named(among)
    description = "chosen positions" if names is None else f"{' and '.join(names)} positions"
    if not bool(chosen.any(dim=1).all()):
        example = int((~chosen.any(dim=1)).nonzero()[0])
        raise LensplugError(
            f"example {example} has no {description} to delete: it has {', '.join(inputs.modality.names)}."
        )
    return chosen, description


def _orders(
    values: Float[Tensor, " pos"], chosen: Bool[Tensor, " pos"], draws: int, generator: torch.Generator
) -> Int[Tensor, "order deleted"]:
    """Positions most relevant first, least relevant first, and in random orders; ties in a random order."""
    positions = chosen.nonzero()[:, 0]
    shuffled = [
        positions[torch.randperm(len(positions), generator=generator).to(positions.device)] for _ in range(draws)
    ]
    mixed = positions[torch.randperm(len(positions), generator=generator).to(positions.device)]
    ascending = mixed[values[mixed].argsort(stable=True)]
    return torch.stack([ascending.flip(0), ascending, *shuffled])


def _log_probabilities(
    lens: Lens,
    inputs: MultimodalInput,
    deleted: Bool[Tensor, "example variant pos"],
    chosen: Bool[Tensor, "example pos"],
    terms: Terms,
    batch_size: int,
) -> Float[Tensor, "example variant"]:
    """The target's, with each set of positions deleted.

    Variants of different examples run together, since of small models a call costs more than what it computes; what
    several orders delete alike, such as nothing and everything, runs once.
    """
    counts = chosen.sum(dim=1, keepdim=True)
    mean = ((inputs.embeds.float() * chosen[:, :, None]).sum(dim=1) / counts).to(inputs.embeds.dtype)
    each = torch.arange(len(deleted), device=deleted.device).repeat_interleave(deleted.shape[1])
    rows = torch.cat([each[:, None], deleted.flatten(0, 1)], dim=1)
    variants, which = torch.unique(rows, dim=0, return_inverse=True)
    results: list[Tensor] = []
    batches = torch.split(variants, batch_size)
    begun = perf_counter()
    for some in batches:
        if len(results) == 1:
            seconds_per_batch = perf_counter() - begun
            announce("deletion_curve", len(batches) - 1, seconds_per_batch, shorter="steps=, draws=")
        example, is_deleted = some[:, 0], some[:, 1:].bool()
        terms_of_batch = Terms(*(part[example.to(part.device)] for part in (terms.rows, terms.ids, terms.weights)))
        changed = torch.where(is_deleted[:, :, None], mean[example, None], inputs.embeds[example])
        logits = lens.logits_at(in_place(inputs, changed, example), terms_of_batch.rows, hidden=is_deleted)
        results.append(terms_of_batch.of(logits.float().log_softmax(dim=-1)).cpu())
    results_found = torch.cat(results)
    if bool(results_found.isnan().any()):
        raise LensplugError("the model gives NaN: use bfloat16 or float32.")
    return results_found[which.cpu()].reshape(deleted.shape[:2])
