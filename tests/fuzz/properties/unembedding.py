"""The logit lens is Hugging Face's norm and head on Hugging Face's hidden states."""

from __future__ import annotations

import numpy as np
import torch
from support.tolerances import rounding

from fuzz import by_hand
from fuzz.case import Case, holds
from fuzz.properties.core import drawn
from fuzz.properties.kept import asked
from fuzz.wrapped import reference
from lensplug import analysis


@holds(weight=6)
def logit_lens_is_the_models_norm_and_head(case: Case) -> None:
    wrapped, lens, batch, inputs = drawn(case)
    places, meant = asked(case, batch)
    final_norm, top_k = case.chance(0.6), case.integer(1, 6)
    chosen = {"residual_positions": places} if case.chance() else {}
    _, cache = lens.run_with_cache(inputs, needs=analysis.logit_lens, **chosen)
    vocabulary = wrapped.config.vocab_size
    target = case.one_of([None, case.integer(0, vocabulary - 1)])
    budget = case.one_of([2**28, 4 * vocabulary])
    found = analysis.logit_lens(
        cache, positions=places, top_k=top_k, target=target, final_norm=final_norm, chunk_bytes=budget
    )
    logits = _logits(wrapped, batch, meant, final_norm)  # [example entry position vocabulary]
    scale = np.abs(logits).max()
    slack = wrapped.allowed(batch.mask.shape[1], scale)
    case.same(found.positions, np.array(meant), "positions")
    log_p = by_hand.log_softmax(logits)
    last = np.argmax(logits[:, -1], axis=-1)
    for index in np.ndindex(log_p.shape[:-1]):
        example, entry, place = index
        followed, row = int(found.target[example, place]), logits[index]
        if target is not None:
            case.same(followed, target, "target")
        elif np.sort(logits[example, -1, place])[-1] - np.sort(logits[example, -1, place])[-2] > 2 * slack:
            case.same(followed, int(last[example, place]), "the answer")
        case.close(found.log_probability[index], log_p[index][followed], 2 * slack, "log-probability")
        surely, perhaps = (int((row > row[followed] + off).sum()) for off in (2 * slack, -2 * slack))
        rank = int(found.rank[index])
        case.same(1 + surely <= rank <= max(1, perhaps), True, f"rank {rank} of {1 + surely} to {perhaps}")
        ids = found.top_tokens[index].tolist()
        case.same(len(set(ids)), top_k, "tokens on top")
        case.close(row[ids], np.sort(row)[::-1][:top_k], 2 * slack, "logits of the tokens on top")
        case.close(found.top_probabilities[index], np.exp(log_p[index][ids]), 2 * slack, "their probabilities")
        p, reference_p = np.exp(log_p[index]), np.exp(log_p[example, -1, place])
        entropy = -(p * log_p[index]).sum()
        kl = (reference_p * (log_p[example, -1, place] - log_p[index])).sum()
        # Entropy and divergence move by at most the difference of log-probabilities times (1 + |log p|) each.
        wide = 2 * slack * (1 + np.abs(log_p[index] * p).sum() + np.abs(log_p[index]).max())
        case.close(found.entropy[index], entropy, wide, "entropy")
        case.close(found.kl_to_last[index], kl, wide, "divergence from the last layer")


def _logits(wrapped, batch, meant, final_norm) -> np.ndarray:
    """By Hugging Face's own modules, in double precision but for the norm; the last hidden state is normed already."""
    outputs, layers = reference(wrapped, batch), wrapped.config.num_hidden_layers
    last: list[torch.Tensor] = []
    block = wrapped.reference.model.layers[-1]
    hook = block.register_forward_hook(lambda _, __, out: last.append(out[0] if isinstance(out, tuple) else out))
    try:
        reference(wrapped, batch)
    finally:
        hook.remove()
    streams = [*outputs.hidden_states[:layers], last[0].view_as(outputs.hidden_states[0])]
    with torch.no_grad():
        entries = torch.stack([wrapped.reference.model.norm(one) if final_norm else one for one in streams], dim=1)
        at = torch.tensor(meant)[:, None, :, None].expand(-1, entries.shape[1], -1, entries.shape[3])
        chosen = entries.gather(2, at).double()
        return (chosen @ wrapped.reference.lm_head.weight.double().T).numpy()


@holds(weight=1)
def the_last_entry_is_the_models_output(case: Case) -> None:
    wrapped, lens, batch, inputs = drawn(case)
    logits, cache = lens.run_with_cache(inputs, needs=analysis.logit_lens)
    found = analysis.logit_lens(cache, positions=-1)
    expected = reference(wrapped, batch).logits[torch.arange(len(batch.mask)), batch.last].double()
    best = expected.log_softmax(-1).gather(-1, found.target)
    allowed = wrapped.allowed(batch.mask.shape[1], expected) + rounding(torch.float32, expected.shape[-1])
    case.close(found.log_probability[:, -1], best, 2 * allowed, "log-probability of the answer")
    case.same(found.rank[:, -1], np.ones_like(found.rank[:, -1].numpy()), "rank of the answer")
    case.close(found.kl_to_last[:, -1], np.zeros(found.kl_to_last[:, -1].shape), 2 * allowed, "divergence from itself")
