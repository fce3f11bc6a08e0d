"""The target of interventions: a number for each example, read from logits, and what rounding explains of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.processed_weights import refuse_centred_logits
from lensplug.analysis.protocols import Lens
from lensplug.errors import LensplugError
from lensplug.inputs.logit_targets import Target, terms_of
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.indices import Position


class MeasuredTarget:
    """The target of some inputs: logits to a number for each example."""

    def __init__(self, lens: Lens, inputs: MultimodalInput, target: Target, position: Position) -> None:
        """What is read.

        Args:
            lens: The lens.
            inputs: The inputs that will be run.
            target: As users say it: a token, two, an answer, or a function of all logits.
            position: Where the logit of a token is read.

        Raises:
            LensplugError: If the target is not one token for each example, or the position is out of range.
        """
        self._examples = len(inputs)
        self.scale = torch.zeros(len(inputs), dtype=torch.float32)
        """Magnitude of what was read first, per example: its largest logit, or the value of the function."""
        self.rows: Int[Tensor, "batch row"] | None = None
        """Where logits are read; None: everywhere."""
        self.is_shared = False
        """Whether a function made one number of several examples, which is then that of each."""
        self._of: Callable[[Tensor], Tensor]
        if callable(target):
            self._of, self.in_words = target, "a function of the logits"
        else:
            terms = terms_of(target, position, inputs, lens.tokenizer, lens.model.cfg.d_vocab_out)
            if not terms.is_difference:
                refuse_centred_logits(lens.model, "the logit of a single token (not the difference of two)")
            self._of, self.rows, self.in_words = terms.of, terms.rows, f"logit at position {position}"

    def __call__(self, logits: Float[Tensor, "batch row d_vocab"]) -> Float[Tensor, " example"]:
        """The numbers, on the CPU and without gradients.

        Raises:
            LensplugError: If there is not one for each example, or one is NaN.
        """
        values = self.of(logits).detach().float().cpu()
        if bool(values.isnan().any()):
            raise LensplugError("the target is NaN: in fp16 attention scores can overflow; use bfloat16 or float32.")
        if not bool(self.scale.any()):
            magnitudes = values if self.rows is None else logits.detach().float().cpu().flatten(1).abs().amax(dim=1)
            self.scale = magnitudes.abs()
        return values

    def of(self, logits: Float[Tensor, "batch row d_vocab"]) -> Float[Tensor, " example"]:
        """The numbers, where gradients can be taken.

        Raises:
            LensplugError: If there is not one for each example.
        """
        values = torch.as_tensor(self._of(logits)).reshape(-1)
        if len(values) not in (1, self._examples):
            raise LensplugError(
                f"the target makes {len(values)} numbers of {self._examples} example(s), expected one, or one for each."
            )
        self.is_shared = len(values) < self._examples
        return values.expand(self._examples)

    def of_copies(self, logits: Float[Tensor, "copy example row d_vocab"]) -> Float[Tensor, "copy example"]:
        """Of several copies of the inputs (`lens.edited_runs`)."""
        return torch.stack([self(copy) for copy in logits])


def rounding_of(cfg: Any, *targets: MeasuredTarget) -> Float[Tensor, " example"]:
    """What rounding explains of a difference between two measured targets.

    eps x scale x sqrt(2 x layers + 1): eps is that of the model's dtype (at least float32's, in which norms are
    computed), once per addition to the residual stream, with errors that accumulate like a random walk.
    """
    eps = max(torch.finfo(cfg.dtype).eps, torch.finfo(torch.float32).eps)
    scales = torch.stack([target.scale for target in targets])
    return scales.amax(dim=0) * float(eps * (2 * cfg.n_layers + 1) ** 0.5)
