"""Engines: build a TransformerLens model from a LanguageCore, one file per engine.

`hooked_transformer` (TransformerLens 3.x) and `bridge` (3.x and 4.x) compute Llama, Qwen2, Mistral and Qwen3 cores
exactly, under the same names of hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore
from lensplug.patches.errors import changed_inside
from lensplug.patches.later_positions import LaterPositions
from lensplug.patches.modules import attentions
from lensplug.patches.patch import in_force
from lensplug.patches.rows_of_blocks import EachBlock, EachGradient
from lensplug.validation.masks import Mask

EngineName = Literal["hooked_transformer", "bridge"]
Engine = Literal["auto"] | EngineName
"""What makes the model; "auto" is the first that is installed and computes a core exactly."""
ENGINES: dict[EngineName, str] = {
    "hooked_transformer": "lensplug.engines.hooked_transformer",
    "bridge": "lensplug.engines.bridge",
}
"""Name -> the module whose `build(core, ...)` makes the model."""


def installed() -> list[EngineName]:
    """The engines that the installed TransformerLens has, in the order of `ENGINES`: what "auto" goes through."""
    hooked = int(version("transformer-lens").split(".")[0]) < 4
    return [name for name in ENGINES if hooked or name != "hooked_transformer"]


def build(
    core: LanguageCore, *, engine: Engine = "auto", tokenizer: Any = None, process_weights: bool = False
) -> tuple[EngineName, Any]:
    """The TransformerLens model of a core, and the name of the engine that made it.

    Args:
        core: The language core of a Hugging Face model.
        engine: Which engine, or "auto".
        tokenizer: The model's tokenizer, kept by the TransformerLens model.
        process_weights: Fold and centre the weights (in a copy).

    Raises:
        LensplugError: If the engine is not installed, or cannot compute this core exactly; or TransformerLens
            is a version that has changed inside.
    """
    reasons = []
    for name in installed() if engine == "auto" else [engine]:
        try:
            with torch.inference_mode(False):  # what is made here takes part in gradients
                build_model = import_module(ENGINES[name]).build
                return name, build_model(core, tokenizer=tokenizer, process_weights=process_weights)
        except LensplugError as refused:
            reasons.append(refused)
        except ImportError as gone:
            raise changed_inside(str(gone)) from gone
    if len(reasons) == 1:
        raise reasons[0]
    # The other engine is no advice where it has refused as well.
    raise LensplugError(" And: ".join(str(reason).removesuffix(" Use engine='bridge'.") for reason in reasons))


def is_tested(core: LanguageCore) -> bool:
    """Whether lensplug's own tests cover cores of this kind, with every engine that takes them."""
    from lensplug.patches.bridge.core import is_tested as is_covered

    return is_covered(core)


def is_tried(core: LanguageCore) -> bool:
    """Whether a core is in no table, so that what its model does around it has to be asked."""
    from lensplug.patches.bridge.core import in_table

    return not in_table(core)


def attention_rows(
    engine: EngineName,
    model: Any,
    rows: Int[Tensor, "batch row"],
    *,
    hidden: Mask | None = None,
    each_block: EachBlock | None = None,
    each_gradient: EachGradient | None = None,
) -> AbstractContextManager[Any]:
    """A scope in which a model computes scores and patterns at these query rows only, with SDPA for the output.

    Args:
        engine: A key of `ENGINES`.
        model: A model that it made.
        rows: For each example the query positions, from the left; there may be none.
        hidden: Positions that no query sees.
        each_block: Shown every layer's pattern in blocks of rows: layer, first row, `[batch head row key]` in fp32;
            the last rows first, with the keys up to the block's last row.
        each_gradient: The same during the backward pass, with the gradient with respect to the pattern.

    Raises:
        LensplugError: If the model's attention has something that cannot be computed so.
    """
    module = import_module(ENGINES[engine])
    context: AbstractContextManager[Any] = in_force(
        module.attention_rows(model, rows, hidden=hidden, each_block=each_block, each_gradient=each_gradient)
    )
    return context


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """A scope with gradient checkpointing of the blocks, and of the positions of MLPs, for either engine."""
    from lensplug.patches.both.checkpointed_blocks import CheckpointedBlocks
    from lensplug.patches.both.mlp_by_positions import MLPByPositions

    with in_force(CheckpointedBlocks(model)), in_force(MLPByPositions(model)):
        yield


def logit_rows(model: Any, rows: Int[Tensor, "batch row"]) -> AbstractContextManager[Any]:
    """While it lasts, a model of either engine makes logits at these positions only.

    Args:
        model: A model that an engine made.
        rows: For each example the positions, from the left.
    """
    from lensplug.patches.both.logit_rows import LogitRows

    context: AbstractContextManager[Any] = in_force(LogitRows(model, rows))
    return context


def last_beginning(model: Any) -> int:
    """The last layer at which runs of a model can begin (`from_layer`)."""
    from lensplug.patches.both.from_layer import last_beginning as of_model

    return of_model(model)


def from_layer(model: Any, layer: int, residual: Float[Tensor, "batch pos d_model"]) -> AbstractContextManager[Any]:
    """While it lasts, runs of a model of either engine begin at this layer, with this residual stream.

    Args:
        model: A model that an engine made.
        layer: The first that is computed.
        residual: What enters it.
    """
    from lensplug.patches.both.from_layer import FromLayer

    context: AbstractContextManager[Any] = in_force(FromLayer(model, layer, residual))
    return context


def decoding(engine: EngineName, model: Any, prompt: Any) -> Any:
    """The steps of one answer of a model of that engine, behind a key-value cache: a `lensplug.patches.Decoding`.

    Args:
        engine: A key of `ENGINES`.
        model: A model that it made.
        prompt: The inputs.

    Raises:
        LensplugError: If an answer cannot begin behind this prompt.
    """
    return import_module(ENGINES[engine]).decoding(model, prompt)


def at_sdpa_speed(engine: EngineName, model: Any, n_examples: int) -> AbstractContextManager[Any]:
    """Within this scope attention computes no scores and patterns, unless a hook needs them.

    A hook on scores or patterns must see them, and may edit them; and some attention is not known to SDPA. There
    everything stays as it is.
    """
    if makes_whole_patterns(engine, model):
        return nullcontext()
    return attention_rows(engine, model, torch.zeros(n_examples, 0, dtype=torch.long))


def short_blocks(engine: EngineName, model: Any, later: LaterPositions | None = None) -> AbstractContextManager[Any]:
    """While it lasts, blocks that no hook sees within compute the same numbers in fewer calls; inside `attention_rows`.

    Hooks on the residual stream between blocks, and on rows of scores and patterns, are called as ever; a block with
    any other hook, also one that comes meanwhile, runs with all hook points.

    Args:
        engine: A key of `ENGINES`.
        model: A model that it made.
        later: Which positions of each pass are computed, where no hook sees blocks behind the first; None: all.
    """
    context: AbstractContextManager[Any] = in_force(import_module(ENGINES[engine]).unwatched_blocks(model, later))
    return context


def computes_parts(engine: EngineName, model: Any) -> bool:
    """Whether every block of a model computes later positions alone, as `short_blocks` are asked to, at present.

    Each has to be of a kind that is known, and no hook may be on the model.
    """
    is_hooked = any(point.fwd_hooks for point in model.hook_dict.values())
    return not is_hooked and bool(import_module(ENGINES[engine]).unwatched_blocks(model, None).knows_all)


def unwatched_blocks(engine: EngineName, model: Any) -> AbstractContextManager[Any]:
    """`short_blocks` inside `at_sdpa_speed`: only where that acts."""
    return nullcontext() if makes_whole_patterns(engine, model) else short_blocks(engine, model)


def makes_whole_patterns(engine: EngineName, model: Any) -> bool:
    """Whether a model computes full patterns even within `at_sdpa_speed`."""
    try:
        import_module(ENGINES[engine]).attention_rows(model, torch.zeros(1, 0, dtype=torch.long))
    except LensplugError:
        return True
    return watched_patterns(model)


def watched_patterns(model: Any) -> bool:
    """Whether a hook on a model of either engine sees attention scores or patterns."""
    points = [getattr(attn, name) for attn in attentions(model) for name in ("hook_attn_scores", "hook_pattern")]
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(point, kind) for point in points for kind in kinds)
