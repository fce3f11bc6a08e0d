"""Estimated memory of a run, from shapes alone: the cache, and peak working memory.

    lens.estimate(inputs)                                     # everything: 46.1 GB kept
    lens.estimate(inputs, needs=analysis.logit_lens, query_positions=[], residual_positions=[-1])

`lens.run_with_cache` asks for it, and refuses runs that do not fit, with these numbers: better at once
than being killed by the system after an hour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lensplug.errors import NotEnoughMemoryError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.running.available_memory import free_bytes
from lensplug.running.caching import RESIDUALS, ROWS, Plan

BLOCK_BYTES = 3 * 2**25
"""What blocks of rows of patterns take while reductions are made, at most, with what is made from them."""
PATTERN_BYTES: dict[str, Callable[[int], float]] = {
    "hooked_transformer": lambda item: 4.25 * item,
    "bridge": lambda item: 2.25 * item + 4,  # its softmax is in fp32 in every model
}
"""What attention that makes a whole pattern holds at once, by engine."""
ROOM = 0.95
"""Usable fraction of free memory: allocators take more than is asked for."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of one run above the weights."""

    by_hook: dict[str, int]
    """What stays in the cache, by kind of hook: all layers together."""
    logits: int
    working: int
    """Peak working memory on the model's device, in addition to the cache."""
    device: torch.device
    """The device of the model."""
    kept_on: torch.device
    """Where the cache is."""
    cheaper: int | None = None
    """Total for a run with the last position only; None if that is no less."""

    @classmethod
    def of(cls, model: Any, inputs: MultimodalInput, plan: Plan, *, engine: str = "hooked_transformer") -> Estimate:
        """The estimate of a plan, for a model that this engine made."""
        estimate = cls._of(model, inputs, plan, engine)
        last = inputs.tokens.new_zeros(len(inputs), 1)
        small = cls._of(
            model, inputs, replace(plan, query_positions=last, residual_positions=last, logit_positions=last), engine
        )
        return replace(estimate, cheaper=small.total if small.total < estimate.total else None)

    @classmethod
    def _of(cls, model: Any, inputs: MultimodalInput, plan: Plan, engine: str) -> Estimate:
        cfg, (batch, length) = model.cfg, inputs.tokens.shape
        sizes = _Sizes(cfg, batch, length, plan, PATTERN_BYTES[engine])
        by_hook: Counter[str] = Counter()
        for name in plan.names:
            if _is_reached(name, plan.others.get("stop_at_layer")):
                by_hook[name.rpartition(".")[2]] += sizes.kept(name)
        for reduction in plan.reductions:
            by_hook[type(reduction).__name__] += 4 * reduction.numbers(inputs, cfg.n_layers, cfg.n_heads)
        device = torch.device(cfg.device)
        kept_on = device if plan.device is None else torch.device(plan.device)
        shared_logits = "unembed.hook_out" in plan.names
        return cls(
            {name: size for name, size in by_hook.items() if size},
            0 if shared_logits else sizes.logits,
            sizes.working(padded=not bool(inputs.attention_mask.all())),
            device,
            kept_on,
        )

    @classmethod
    def of_answer(
        cls, model: Any, inputs: MultimodalInput, plan: Plan, max_new_tokens: int, *, engine: str
    ) -> Estimate:
        """The estimate of `lens.generate`, whose first step is the run of this plan."""
        estimate, cfg = cls._of(model, inputs, plan, engine), model.cfg
        positions = len(inputs) * (inputs.tokens.shape[1] + max_new_tokens)
        of_layer = 2 * positions * int(cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head * cfg.dtype.itemsize
        logits = 4 * len(inputs) * cfg.d_vocab_out * 4  # in fp32, with what chooses among them
        if engine == "hooked_transformer":
            of_layer += of_layer // 2  # keys are kept before their rotation and behind it
        # When a layer's cache grows, the old and the new one exist at the same time.
        key_value_cache = {"key-value cache": cfg.n_layers * of_layer}
        return replace(estimate, by_hook=key_value_cache, logits=logits, working=estimate.working + of_layer)

    @classmethod
    def of_check(cls, model: Any, inputs: MultimodalInput, plan: Plan, rows: int, *, engine: str) -> Estimate:
        """The estimate of `lens.check`, whose wrapped core makes the run of this plan.

        Args:
            model: The wrapped core.
            inputs: The inputs.
            plan: The plan of the run.
            rows: Number of positions per example whose logits are computed.
            engine: Its engine.
        """
        estimate = cls._of(model, inputs, plan, engine)
        streams = 5 * inputs.tokens.numel() * model.cfg.d_model * 4
        logits = 4 * len(inputs) * min(rows, inputs.tokens.shape[1]) * model.cfg.d_vocab_out * 4
        return replace(estimate, by_hook={"residual streams": streams}, logits=logits)

    @property
    def kept(self) -> int:
        """Bytes that stay cached."""
        return sum(self.by_hook.values()) + self.logits

    @property
    def total(self) -> int:
        """Peak memory of the run."""
        return self.kept + self.working

    def refuse_too_large(self) -> None:
        """Raise if it does not fit.

        Raises:
            LensplugError: With the numbers, and the cheaper call.
        """
        for device, size, free in self._lacking():
            advice = ""
            if self.cheaper is not None:
                advice = (
                    f" The last position alone takes {_gb(self.cheaper)}: query_positions=[-1],"
                    " residual_positions=[-1], logit_positions=[-1], with needs=[...] for less; of all rows"
                    ' keep="head_mean" or "rollout" in place of patterns.'
                )
            raise NotEnoughMemoryError(
                f"this run would take {_gb(size)} on {device}, and {_gb(free)} are free.{advice} Its parts:\n{self}"
            )

    def _lacking(self) -> Iterator[tuple[torch.device, int, int]]:
        """The devices that it does not fit on, what it would take there, and what is free."""
        if self.device == self.kept_on:
            needed = {self.device: self.total}
        else:
            needed = {self.device: self.working + self.logits, self.kept_on: self.kept - self.logits}
        for device, size in needed.items():
            free = free_bytes(device)
            if size > ROOM * free:
                yield device, size, free

    def __str__(self) -> str:
        """A line for each part, the largest first."""
        parts = sorted([*self.by_hook.items(), ("logits", self.logits)], key=lambda part: -part[1])
        lines = [f"{_gb(self.kept)} stay on {self.kept_on}, {_gb(self.working)} more while it runs on {self.device}"]
        return "\n".join(lines + [f"  {_gb(size):>10}  {name}" for name, size in parts if size])


def refuse_too_large(model: Any, inputs: MultimodalInput, plan: Plan, *, engine: str) -> None:
    """Raise if a run does not fit. The cheaper call is worked out only where one is needed.

    Raises:
        LensplugError: As `Estimate.refuse_too_large`.
    """
    if any(Estimate._of(model, inputs, plan, engine)._lacking()):
        Estimate.of(model, inputs, plan, engine=engine).refuse_too_large()


def copies_that_fit(model: Any, inputs: MultimodalInput, plan: Plan, *, engine: str) -> int:
    """How many copies of a run fit side by side into half of the memory that is free."""
    estimate = Estimate._of(model, inputs, plan, engine)
    return int(free_bytes(estimate.device) / 2 // max(1, estimate.total))


@dataclass(frozen=True)
class _Sizes:
    """Bytes of TransformerLens's activations."""

    cfg: Any
    batch: int
    length: int
    plan: Plan
    pattern_bytes: Callable[[int], float]
    """Bytes per pattern weight, with its intermediate values, given the bytes per number."""

    @property
    def item(self) -> int:
        """Bytes of one number of the model's dtype."""
        return int(self.cfg.dtype.itemsize)

    @property
    def kv_heads(self) -> int:
        return int(self.cfg.n_key_value_heads or self.cfg.n_heads)

    @property
    def logits(self) -> int:
        return int(self._rows(self.plan.logit_positions) * self.cfg.d_vocab_out * self.item)

    def kept(self, name: str) -> int:
        """Bytes kept under the name of a hook; 0 if it does not fire, or if another hook holds the same tensor."""
        plan, last = self.plan, name.rpartition(".")[2]
        if name == "unembed.hook_out":
            return self.logits
        if last == "hook_resid_pre" and plan.residual_positions is None and self._is_held_as(name):
            return 0
        rows, width, item = self.batch * self.length, self._width(name), self.item
        if last in ROWS:
            rows, item = self._rows(plan.query_positions), item if plan.query_positions is None else 4
        elif last in ("hook_scale", "hook_normalized"):
            item = max(4, item)  # fp32 in every model, until the norm's weight
        elif last == "hook_expert_indices":
            item = 8
        elif last in RESIDUALS:
            rows = self._rows(plan.residual_positions)
        elif name == "unembed.hook_in":
            rows = self._rows(plan.logit_positions)
        return int(rows * width * item)

    def working(self, *, padded: bool) -> int:
        """Peak working memory of one block, in addition to what is cached."""
        cfg, item, positions = self.cfg, self.item, self.batch * self.length
        weights = self.batch * cfg.n_heads * self.length**2
        stream = 5 * positions * cfg.d_model * max(4, item)
        mlp = 2 * positions * cfg.d_mlp * item
        if self.plan.query_positions is None:
            attention = int(weights * self.pattern_bytes(item))
        else:
            attention = positions * (3 * cfg.n_heads + 4 * self.kv_heads) * cfg.d_head * item
            attention += 4 * self._rows(self.plan.query_positions) * cfg.n_heads * self.length * 4
            blocks, masked = 0, 0
            if self.plan.reductions:
                row = 4 * self.batch * cfg.n_heads * self.length * 4
                blocks = max(row, min(BLOCK_BYTES, row * self.length))
            if padded:  # a mask for SDPA, and shared keys and values for every head
                masked = self.batch * self.length**2 * (2 + item) + 2 * positions * cfg.n_heads * cfg.d_head * item
            attention += max(blocks, masked)  # blocks of rows are gone before SDPA begins
        return int(stream + max(mlp, attention))

    def _rows(self, rows: Tensor | None) -> int:
        return self.batch * self.length if rows is None else rows.numel()

    def _is_held_as(self, name: str) -> bool:
        """The stream before a block is the one after the block before it, or the embedding: one tensor."""
        layer = int(name.split(".")[1])
        before = "hook_embed" if layer == 0 else f"blocks.{layer - 1}.hook_resid_post"
        return self.plan.device is None and before in self.plan.names

    def _width(self, name: str) -> int:
        """Numbers per position."""
        if "_norm." in name:  # of queries or keys, for each head
            heads_here = self.cfg.n_heads if "q_norm" in name else self.kv_heads
            return int(heads_here * (1 if name.endswith("hook_scale") else self.cfg.d_head))
        return int(self._widths.get(name.rpartition(".")[2], 0))  # a hook that the user has added is not known

    @cached_property
    def _widths(self) -> dict[str, int]:
        """Numbers per position, by kind of hook."""
        cfg, heads, kv_heads = self.cfg, self.cfg.n_heads, self.kv_heads
        return {
            **dict.fromkeys((*RESIDUALS, "hook_attn_out", "hook_mlp_out", "hook_in", "hook_normalized"), cfg.d_model),
            "hook_scale": 1,
            **dict.fromkeys(("hook_q", "hook_rot_q", "hook_z"), heads * cfg.d_head),
            **dict.fromkeys(("hook_k", "hook_v", "hook_rot_k"), kv_heads * cfg.d_head),
            **dict.fromkeys(ROWS, heads * self.length),
            **dict.fromkeys(("hook_pre", "hook_pre_linear", "hook_post"), cfg.d_mlp),
            "hook_router_logits": getattr(cfg, "num_experts", None) or 0,
            **dict.fromkeys(
                ("hook_expert_weights", "hook_expert_indices"), getattr(cfg, "experts_per_token", None) or 0
            ),
            # These fire only if they are switched on in the model.
            "hook_mlp_in": cfg.d_model * cfg.use_hook_mlp_in,
            "hook_attn_in": heads * cfg.d_model * cfg.use_attn_in,
            "hook_result": heads * cfg.d_model * cfg.use_attn_result,
            "hook_q_input": heads * cfg.d_model * cfg.use_split_qkv_input,
            **dict.fromkeys(("hook_k_input", "hook_v_input"), kv_heads * cfg.d_model * cfg.use_split_qkv_input),
        }


def _is_reached(name: str, stop_at_layer: int | None) -> bool:
    if stop_at_layer is None:
        return True
    layer = name.split(".")[1] if name.startswith("blocks.") else None
    return name == "hook_embed" if layer is None else int(layer) < stop_at_layer


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
