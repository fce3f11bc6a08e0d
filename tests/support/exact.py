"""A wrapped core against Hugging Face's eager model, on inputs of its own media: what must hold of every family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from support.eager import eager
from support.models import largest_difference


@dataclass
class Apart:
    """How far both are from each other, the largest number of each kind; patterns as probabilities."""

    logits: float
    patterns: float
    rows: float
    """Of `query_positions`."""
    decomposition: float
    """Of the sum of `decompose_resid`, as a fraction of the largest value of Hugging Face's last residual stream."""
    gradients: float
    """Of a logit with respect to the embeddings, as a fraction of the largest."""
    same_answer: bool
    """Whether greedy generation behind the key-value cache says the same."""

    def is_rounding(self, least: float = 1e-4) -> bool:
        """Whether float32 explains all of it."""
        numbers = (self.logits, self.patterns, self.rows, self.decomposition, self.gradients)
        return self.same_answer and all(number < least for number in numbers)


def compared(lens: Any, inputs: Any, steps: int = 4) -> Apart:
    """Both on the same inputs; padded at the left, if at all.

    Args:
        lens: The wrapped model.
        inputs: From `lens.prepare` or `lens.encode`.
        steps: How many tokens are generated.
    """
    model, decoder, given = lens.hf_model, lens.core.decoder, inputs.model_inputs
    real = inputs.attention_mask.bool()
    with eager(decoder), torch.no_grad():
        streams: list[Tensor] = []
        with decoder.layers[-1].register_forward_hook(lambda *seen: streams.append(_stream(seen[-1]))):
            expected = model(**given, use_cache=False, output_attentions=True)
        answer = model.generate(**given, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=0)
    logits, cache = lens.run_with_cache(inputs)
    _, rows = lens.run_with_cache(inputs, query_positions=[-1])
    patterns, of_rows = [0.0], [0.0]
    for layer, theirs in enumerate(expected.attentions):
        ours = cache["pattern", layer].transpose(1, 2)
        patterns.append(largest_difference(ours, theirs.transpose(1, 2), real))
        of_rows.append(largest_difference(rows["pattern", layer][:, :, 0], theirs[:, :, -1]))
    parts = cache.decompose_resid().sum(0)
    return Apart(
        logits=largest_difference(logits, expected.logits, real),
        patterns=max(patterns),
        rows=max(of_rows),
        decomposition=largest_difference(parts, streams[0], real) / float(streams[0].abs().max()),
        gradients=_gradients(lens, inputs),
        same_answer=torch.equal(lens.generate(inputs, max_new_tokens=steps).tokens, answer[:, inputs.shape[1] :]),
    )


def _gradients(lens: Any, inputs: Any) -> float:
    ours, theirs = (inputs.embeds.detach().clone().requires_grad_() for _ in range(2))

    def replaced(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "inputs_embeds": theirs, "input_ids": None}

    decoder = lens.core.decoder
    with eager(decoder), decoder.register_forward_pre_hook(replaced, with_kwargs=True):
        lens.hf_model(**inputs.model_inputs, use_cache=False).logits[:, -1, 5].sum().backward()
    lens.model(replace(inputs, embeds=ours))[:, -1, 5].sum().backward()
    assert theirs.grad is not None and ours.grad is not None
    return largest_difference(ours.grad, theirs.grad) / float(theirs.grad.abs().max())


def _stream(output: Any) -> Tensor:
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream
