"""The logit lens: the next-token distribution read from the residual stream after each layer.

Method:

1. Take the residual stream x_l, `[pos d_model]`, after the embedding and after each layer.
2. Unembed it: p_l = softmax(norm(x_l) W_U + b_U), with the final norm's statistics of x_l (`final_norm=True`; the last
   entry is then exactly the model's output), or softmax(x_l W_U + b_U) for the raw stream (`final_norm=False`, with the
   unembedding as trained, also where weight processing has folded the norm into it). The result records which.
3. Report the top k tokens, rank and log-probability of a target, entropy of p_l, and KL(p_last || p_l), in nats.
4. `settled_layer` is the first layer from which the target stays the top token.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens" (LessWrong).

When to use it: to see at which depth an answer forms, and what each image patch "says" in each layer.

When not to use it: early layers of some models use another basis; the lens then shows noise although the information is
there (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", arXiv 2303.08112).

All positions of an image in all layers are tens of thousands of rows of vocabulary size. They are computed in chunks
(`chunk_bytes`), and only the top k and a few statistics of each row are kept.

Example:
    lens_at_answer = analysis.logit_lens(cache, positions=-1, target="Red")
    lens_at_answer.settled_layer                     # the first layer from which "Red" stays on top
    patches = analysis.logit_lens(cache, positions=inputs.modality.image_positions(), target="Red")
    views.image_overlay(patches, inputs)             # the probability of "Red" at each patch, by layer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.logits.logit_statistics import CACHE_BYTES, chunks, statistics
from lensplug.analysis.logits.unembedding import model_of, unembed
from lensplug.analysis.over_examples import OverExamples, grid
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import attended, n_layers, read_residuals, residual_shape
from lensplug.errors import LensplugError
from lensplug.positions.indices import Positions, resolve_positions
from lensplug.positions.tokens import single_token, token_texts
from lensplug.validation.arguments import at_least, check_example, checked
from lensplug.validation.masks import Mask

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["probability", "log_probability", "rank", "reciprocal_rank", "entropy", "kl_to_last"]
"""What overlays can show of a logit lens."""


@dataclass(frozen=True, repr=False)
class LogitLens(Result):
    """What each layer says at each chosen position. Entry 0 is the embedding, entry i the output of block i - 1."""

    label_columns = ("example", "position", "entry", "target")
    main_number = "target_log_probability"
    example_depth = {"top_texts": 0, "target_texts": 0}

    top_tokens: Int[Tensor, "example entry position k"]
    """The k most probable token ids, most probable first."""
    top_probabilities: Float[Tensor, "example entry position k"]
    """0 to 1."""
    target: Int[Tensor, "example position"]
    """The token that `rank` and `log_probability` are of."""
    rank: Int[Tensor, "example entry position"]
    """Rank of the target; 1 = most probable. (TransformerLens's own tools count ranks from 0.)"""
    log_probability: Float[Tensor, "example entry position"]
    """Log-probability of the target, in nats."""
    entropy: Float[Tensor, "example entry position"]
    """Entropy of the layer's distribution, in nats."""
    kl_to_last: Float[Tensor, "example entry position"]
    """KL(last layer || this layer), in nats: what is lost by stopping here. 0 at the last entry."""
    positions: Int[Tensor, "example position"]
    """From the left."""
    top_texts: list[list[list[list[str]]]]
    """The text of `top_tokens`."""
    target_texts: list[list[str]]
    length: Int[Tensor, " example"]
    """Positions of the padded prompt, read or not."""
    provenance: Provenance

    @property
    def entries(self) -> list[str]:
        """The name of each entry: "embed", then the layer after which it was read."""
        return ["embed", *map(str, range(self.rank.shape[1] - 1))]

    @property
    def settled_layer(self) -> Int[Tensor, "example position"]:
        """The first layer from which the target stays on top to the end; -1 = the embedding, n_layers = never.

        Layers are counted as TransformerLens counts blocks: the answer is there after block `settled_layer`.
        """
        return self.rank.shape[1] - 1 - self.settled.int().sum(dim=1)

    @property
    def settled(self) -> Bool[Tensor, "example entry position"]:
        """Whether the target stays on top from an entry to the end."""
        return (self.rank == 1).flip(1).int().cumprod(dim=1).flip(1).bool()

    @checked
    def by_position(self, example: int = 0, *, measure: Measure = "probability") -> dict[str, Float[Tensor, " pos"]]:
        """One value of the target for each position and entry, NaN where the lens did not read: for overlays.

        Args:
            example: Which example.
            measure: "probability", "log_probability" (nats) or "rank" (1 = top) of the target, "reciprocal_rank"
                (1 = top, towards 0), "entropy" or "kl_to_last" (nats) of the layer's distribution.
        """
        check_example(example, len(self.positions))
        measures: dict[Measure, Callable[[], Tensor]] = {
            "probability": lambda: self.log_probability.exp(),
            "log_probability": lambda: self.log_probability,
            "rank": lambda: self.rank.float(),
            "reciprocal_rank": lambda: 1 / self.rank,
            "entropy": lambda: self.entropy,
            "kl_to_last": lambda: self.kl_to_last,
        }
        rows = torch.full((self.rank.shape[1], int(self.length[example])), torch.nan)
        rows[:, self.positions[example]] = measures[measure]()[example].float()
        names = ["embed", *(f"layer {layer}" for layer in range(len(rows) - 1))]
        return dict(zip(names, rows, strict=True))

    def over_examples(self) -> OverExamples:
        """Log-probability and rank of the target, whether it is on top, and stays there, entropy, divergence: by layer.

        The mean of "settled" is the share of examples that have settled by a layer.

        Where several positions were read, rows are told apart by the place of the position in `positions`.
        """
        positions = {"position": range(self.rank.shape[2])} if self.rank.shape[2] > 1 else {}
        numbers = {
            "target_log_probability": self.log_probability,
            "target_rank": self.rank,
            "target_on_top": self.rank == 1,
            "settled": self.settled,
            "entropy_nats": self.entropy,
            "kl_to_last_nats": self.kl_to_last,
        }
        return OverExamples(
            grid(entry=self.entries, **positions), {name: value.flatten(1).double() for name, value in numbers.items()}
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, position and entry."""
        import pandas as pd

        # Whole columns at once: an image has tens of thousands of rows.
        examples, entries, positions = self.rank.shape
        example, pos, entry = (
            axis.flatten().numpy()
            for axis in torch.meshgrid(*map(torch.arange, (examples, positions, entries)), indexing="ij")
        )
        by_row = {
            name: getattr(self, name).transpose(1, 2).flatten()
            for name in ("rank", "log_probability", "entropy", "kl_to_last")
        }
        return pd.DataFrame(
            {
                "example": example,
                "position": self.positions[example, pos].numpy(),
                "entry": np.array(self.entries)[entry],
                "top_token": [self.top_texts[e][layer][p][0] for e, p, layer in zip(example, pos, entry, strict=True)],
                "top_probability": self.top_probabilities[..., 0].transpose(1, 2).flatten().double().numpy(),
                "target": [self.target_texts[e][p] for e, p in zip(example, pos, strict=True)],
                "target_rank": by_row["rank"].numpy(),
                "target_log_probability": by_row["log_probability"].double().numpy(),
                "entropy_nats": by_row["entropy"].double().numpy(),
                "kl_to_last_nats": by_row["kl_to_last"].double().numpy(),
            }
        )


@needs("blocks.0.hook_resid_pre", "hook_resid_post")
@checked
def logit_lens(
    cache: ActivationCache,
    *,
    positions: Positions | None = -1,
    top_k: int = 5,
    target: str | int | Tensor | None = None,
    final_norm: bool = True,
    attention_mask: Mask | None = None,
    chunk_bytes: int = 2**28,
) -> LogitLens:
    """Unembed the residual stream after every layer.

    Args:
        cache: An ActivationCache with `hook_resid_pre` of the first block and `hook_resid_post` of every
            block (`logit_lens.needs`), and its model.
        positions: Where to read, the same for every example or a tensor `[example position]`; negative ones
            count from the last position that is not padding. None reads every position (padding too).
        top_k: How many tokens to keep of each distribution.
        target: The token whose rank and probability are followed: a word that is one token, an id, or
            ids `[example]` or `[example position]`. By default the last layer's top token at each
            position: the final answer.
        final_norm: See the top of this file.
        attention_mask: For a padded cache that TransformerLens made alone; the lens's caches carry theirs.
        chunk_bytes: At most this much memory for vocabulary-sized rows at any time.

    Raises:
        LensplugError: If a residual is missing, a position is out of range, the target is not one token, or
            `final_norm=False` of weights that TransformerLens alone has folded.
    """
    at_least(1, chunk_bytes=chunk_bytes)
    model = model_of(cache, needed_by="logit_lens")
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(n_layers(cache)))]
    batch, length = residual_shape(cache, needed_by="logit_lens")
    mask = attended(cache, (batch, length), attention_mask, torch.device("cpu"), positions=positions)
    everywhere = torch.arange(length).expand(batch, -1)
    positions_read = everywhere if positions is None else resolve_positions(positions, mask)
    residuals = read_residuals(cache, names, positions_read, needed_by="logit_lens")
    chosen = [residual.flatten(0, 1) for residual in residuals]  # [row d_model]
    vocabulary = model.unembed.W_U.shape[1]
    if not 1 <= top_k <= vocabulary:
        raise LensplugError(f"top_k is {top_k}, expected 1 to {vocabulary}.")
    target_ids = _target(target, positions_read, vocabulary, getattr(model, "tokenizer", None))

    flat = None if target_ids is None else target_ids.flatten()
    statistics_by_name, followed = _numbers(model, chosen, flat, top_k, final_norm, chunk_bytes)
    by_entry = {
        name: value.view(*positions_read.shape, *value.shape[1:]).transpose(1, 2)
        for name, value in statistics_by_name.items()
    }
    cross = by_entry.pop("cross")
    by_entry["kl_to_last"] = (cross - cross[:, -1:]).clamp(min=0)  # the last layer's cross-entropy is its own entropy
    tokenizer = getattr(model, "tokenizer", None)
    convention = "final norm with each layer's own statistics" if final_norm else "raw residual, no final norm"
    return LogitLens(
        **by_entry,
        target=followed.reshape(positions_read.shape),
        positions=positions_read.cpu(),
        top_texts=_texts(by_entry["top_tokens"], tokenizer),
        target_texts=token_texts(followed.reshape(positions_read.shape), tokenizer),
        length=torch.full((batch,), length),
        provenance=Provenance.of(cache, "logit_lens", convention),
    )


def _texts(tokens: Int[Tensor, "example entry position k"], tokenizer: Any) -> list[list[list[list[str]]]]:
    """The text of every token; each is decoded once, whatever the number of entries that have it."""
    rows = iter(token_texts(tokens.flatten(0, 2), tokenizer))
    examples, entries, positions = tokens.shape[:3]
    return [[[next(rows) for _ in range(positions)] for _ in range(entries)] for _ in range(examples)]


def _numbers(
    model: Any,
    residuals: Sequence[Float[Tensor, "position d_model"]],
    target: Int[Tensor, " position"] | None,
    top_k: int,
    final_norm: bool,
    chunk_bytes: int,
) -> tuple[dict[str, Tensor], Int[Tensor, " position"]]:
    """`statistics` of every entry's residuals, as `[position entry ...]`, and the tokens that were followed."""
    W_U = model.unembed.W_U
    positions, entries, vocabulary = len(residuals[0]), len(residuals), W_U.shape[1]
    # Rows in fp32 that there is memory for: logits, the last layer's logits and probabilities, and twice the few that
    # `statistics` works on at a time, which a processor's cache should hold.
    budget = chunk_bytes // (4 * vocabulary)
    few = max(1, budget // 4)
    if W_U.device.type == "cpu":
        few = min(few, max(1, CACHE_BYTES // (4 * vocabulary)))
    many = max(1, (budget - 2 * few) * entries // (entries + 2))
    place = W_U.new_empty(min(many, positions * entries), vocabulary)  # fresh memory costs a tenth of the product
    statistics_by_name: dict[str, Tensor] = {}
    followed = torch.empty(positions, dtype=torch.long)
    with torch.no_grad():
        for rows in chunks(positions, max(1, many // entries)):
            chunk = torch.stack([residual[rows] for residual in residuals], dim=1)
            # All entries in one product where they fit: each reads the whole unembedding, which for few rows takes
            # longer than the rest. The last layer comes first: the others are compared with it.
            for group in reversed(list(chunks(entries, many))):
                x = chunk[:, group].flatten(0, 1)
                logits = unembed(model, x, final_norm=final_norm, out=place[: len(x)]).view(len(chunk), -1, vocabulary)
                if group.stop == entries:
                    last = logits[:, -1]
                    p_last = last.float().softmax(dim=-1)
                    target_here = last.argmax(dim=-1) if target is None else target[rows].to(last.device)
                    followed[rows] = target_here.cpu()
                numbers = statistics(logits, p_last, target_here, top_k=top_k, few=few)
                for name, value in numbers.items():
                    # One tensor per statistic: many small results would be allocated between the large buffers that
                    # come and go, and the heap could not use their place again.
                    if name not in statistics_by_name:
                        statistics_by_name[name] = value.new_empty(positions, entries, *value.shape[2:], device="cpu")
                    statistics_by_name[name][rows, group] = value
    return statistics_by_name, followed


def _target(
    target: str | int | Tensor | None, positions: Int[Tensor, "batch position"], vocabulary: int, tokenizer: Any
) -> Int[Tensor, "batch position"] | None:
    if target is None:
        return None
    ids = torch.as_tensor(single_token(target, tokenizer) if isinstance(target, str) else target)
    if ids.ndim == 1 and len(ids) == len(positions):
        ids = ids[:, None]
    if (
        ids.ndim > 2
        or (ids.ndim > 0 and ids.shape[0] != len(positions))
        or (ids.ndim == 2 and ids.shape[1] not in (1, positions.shape[1]))
    ):
        raise LensplugError(
            f"target has the shape {list(ids.shape)}, expected one id, [{len(positions)}] or {list(positions.shape)}"
            " (example,"
            " position)."
        )
    if ids.is_floating_point() or int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise LensplugError(f"target ids must be whole numbers from 0 to {vocabulary - 1}, got {ids.tolist()}.")
    return ids.expand(positions.shape)
