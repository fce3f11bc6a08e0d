"""Given answers while neurons are deactivated: the runs behind `neuron_ablation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.analysis.interventions.ablation_run import Example, prepared
from lensplug.analysis.interventions.given_answers import answer_positions, log_probabilities
from lensplug.analysis.neurons.deactivation import Deactivated, Hook, hook_name, refuse_other_width, with_hooks
from lensplug.analysis.protocols import Lens
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.by_modality import mask_at


@dataclass(frozen=True)
class ReadAnswers:
    """What was read of each answer; the first run has no neurons deactivated."""

    log_probability: Float[Tensor, "run example"]
    right: Bool[Tensor, "run example"]
    changed: Bool[Tensor, "run example"]
    predicted: tuple[tuple[str, ...], ...]

    @classmethod
    def joined(cls, parts: Sequence[ReadAnswers]) -> ReadAnswers:
        """Those of several batches."""
        texts = zip(*(part.predicted for part in parts), strict=True)
        return cls(
            log_probability=torch.cat([part.log_probability for part in parts], dim=1),
            right=torch.cat([part.right for part in parts], dim=1),
            changed=torch.cat([part.changed for part in parts], dim=1),
            predicted=tuple(tuple(text for of_batch in of_run for text in of_batch) for of_run in texts),
        )


@dataclass(frozen=True)
class AnswersOfRuns:
    """The examples in batches, each run with none and with every set of neurons deactivated."""

    lens: Lens
    examples: Sequence[Example]
    sets: Sequence[Bool[Tensor, "layer neuron"]]
    where: Sequence[str]
    """At the positions of which modalities; () at all."""
    batch_size: int
    progress: Callable[[str], None]

    def read(self, value: float | str) -> ReadAnswers:
        """Run all examples.

        Args:
            value: What deactivated neurons give: a number, or "mean".

        Raises:
            LensplugError: If an example has no position of `where`, or a logit is NaN.
        """
        values = self._means() if isinstance(value, str) else torch.full(self.sets[0].shape, float(value))
        parts = [self._of_batch(inputs, values) for inputs in self._batches("deactivating neurons")]
        return ReadAnswers.joined(parts)

    def _batches(self, doing: str) -> Iterator[MultimodalInput]:
        for start in range(0, len(self.examples), self.batch_size):
            self.progress(f"{doing}, example {start + 1} of {len(self.examples)}")
            yield prepared(self.lens, self.examples[start : start + self.batch_size], with_answers=True)

    def _positions(self, inputs: MultimodalInput) -> Bool[Tensor, "batch pos"] | None:
        """Where neurons are deactivated; None: everywhere."""
        if not self.where:
            return None
        mask: Tensor = mask_at(self.where, inputs, inputs.tokens.shape, "where")
        for row, has_any in enumerate(mask.any(dim=1).tolist()):
            if not has_any:
                raise LensplugError(
                    f"an example has no {' or '.join(self.where)} position, at which neurons could be deactivated:"
                    f" {''.join(inputs.str_tokens[row])[-60:]!r}."
                )
        return mask

    def _of_batch(self, inputs: MultimodalInput, values: Float[Tensor, "layer neuron"]) -> ReadAnswers:
        positions, exists = answer_positions(inputs)
        at, present = self._positions(inputs), exists.cpu()
        answer = inputs.tokens.gather(1, positions).cpu()
        scores, tokens = [], []
        with torch.no_grad(), self.lens.logits_only(positions - 1):
            for hooks in ([], *(Deactivated(neurons, values, at).hooks() for neurons in self.sets)):
                with with_hooks(self.lens, hooks):
                    logits: Tensor = self.lens.model(inputs)
                each = log_probabilities(logits, inputs, positions, exists)
                if bool((each.isnan() & present).any()):
                    raise LensplugError("the model gives NaN: in fp16 numbers can overflow; use bfloat16 or float32.")
                scores.append(each.nansum(dim=1))
                tokens.append(logits.argmax(dim=-1).cpu())
        predicted = torch.stack(tokens)
        return ReadAnswers(
            log_probability=torch.stack(scores),
            right=((predicted == answer) | ~present).all(dim=2),
            changed=((predicted != predicted[:1]) & present).any(dim=2),
            predicted=tuple(
                tuple(str(self.lens.tokenizer.decode(row[there])) for row, there in zip(of_run, present, strict=True))
                for of_run in predicted
            ),
        )

    def _means(self) -> Float[Tensor, "layer neuron"]:
        """The mean of `mlp.hook_post` over the positions that are deactivated, in every layer with chosen neurons."""
        layers = self.sets[0].any(dim=1).nonzero()[:, 0].tolist()
        sums, count = torch.zeros(self.sets[0].shape, dtype=torch.float64), 0
        for inputs in self._batches("reading activations"):
            chosen = self._positions(inputs)
            at = inputs.attention_mask.bool() if chosen is None else chosen
            count += int(at.sum())

            def add(post: Tensor, hook: Any, *, layer: int, at: Tensor) -> None:
                refuse_other_width(post, sums, layer)
                weight = at.to(post.device).float()
                sums[layer] += torch.einsum("bp,bpn->n", weight, post.float()).double().cpu()

            hooks: list[Hook] = [(hook_name(layer), partial(add, layer=layer, at=at)) for layer in layers]
            last = torch.full((len(inputs), 1), inputs.shape[1] - 1)
            with torch.no_grad(), self.lens.logits_only(last), with_hooks(self.lens, hooks):
                self.lens.model(inputs)
        return (sums / count).float()
