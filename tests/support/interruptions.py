"""Runs of a lens that are interrupted at any place, and the state that each must leave: what it was before.

An exception (any kind, KeyboardInterrupt among them) is raised before the n-th line that is run inside lensplug, or in
a hook of TransformerLens, or in the vision tower or a layer of the Hugging Face model; n and all else come from a seed.
`interrupted(count)` does that so many times and returns what was left behind.
"""

from __future__ import annotations

import linecache
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import lensplug
from lensplug import analysis, patches
from lensplug.engines import EngineName
from lensplug.hf.run_lock import turn
from lensplug.patches.both import placeholders
from support.models import QUESTION, llava_onevision, scene

INSIDE = tuple(str(Path(module.__path__[0])) for module in (lensplug, patches))
KINDS = (KeyboardInterrupt, RuntimeError, ValueError, SystemExit, MemoryError)
BOOKS = {"_capture_hf_cache", "_derived_position_ids_ok", "_block_alias_cache"}
"""What a bridge notes for itself when it has generated, or told its hooks, once."""


@dataclass
class Outcome:
    """What came of some interruptions."""

    cases: int = 0
    interrupted: int = 0
    left: list[str] = field(default_factory=list)
    """One line for each case that left something behind, with its seed."""
    by_kind: Counter[str] = field(default_factory=Counter)


def runs(lens: Any, inputs: Any) -> dict[str, Callable[[], Any]]:
    """Every way to run a lens."""
    rows = torch.full((len(inputs), 1), inputs.tokens.shape[1] - 1)
    image = inputs.modality.mask("image")

    def patched() -> None:
        kinds = [patches.LogitDirections(lens.model), patches.CheckpointedBlocks(lens.model)]
        for patch in kinds:
            with patches.patch.in_force(patch):
                lens.model(inputs)

    def inside() -> None:
        with lens.logits_only(rows, hidden=image), torch.no_grad():
            lens.model(inputs)

    groups = image[0].long()
    return {
        "encode": lambda: lens.encode(inputs.model_inputs),
        "cache": lambda: lens.run_with_cache(inputs),
        "rows": lambda: lens.run_with_cache(inputs, query_positions=[-1], keep="head_mean", logit_positions=[-1]),
        "gradients": lambda: lens.run_with_gradients(inputs, target=5),
        "cam": lambda: lens.run_with_gradients(inputs, target=5, keep="cam"),
        "hooks": lambda: lens.run_with_hooks(inputs, fwd_hooks=[("hook_embed", lambda value, hook: value)]),
        "hidden": inside,
        "without": lambda: lens.model(lens.without(inputs, image)),
        "generate": lambda: lens.generate(inputs, max_new_tokens=2),
        "check": lambda: lens.check(inputs),
        "patching": lambda: analysis.activation_patching(lens, inputs, inputs, 5, groups=groups, layers=(0, 0)),
        "patches": patched,
        "stop": lambda: lens.model.run_with_cache(inputs, stop_at_layer=lens.model.cfg.n_layers),
    }  # fmt: skip


def state(lens: Any) -> dict[str, Any]:
    """All that a run could leave behind: attributes, hooks, weights, modes, classes, configuration, the lock."""
    snapshot: dict[str, Any] = {}
    for which, model in (("hf", lens.hf_model), ("tl", lens.model)):
        for path, module in model.named_modules():
            place = f"{which}.{path}"
            for name, value in vars(module).items():
                if name in BOOKS:
                    continue
                content: Any
                if isinstance(value, dict):  # hooks, parameters, submodules, a bridge's registry
                    content = [(key, id(value_of_key)) for key, value_of_key in value.items()]
                elif isinstance(value, list | tuple | set):
                    content = [item if isinstance(item, int | str | bool) else id(item) for item in value]
                else:
                    content = value if isinstance(value, int | str | bool | type(None)) else id(value)
                snapshot[f"{place}.{name}"] = content
            if isinstance(getattr(module, "__dict__", {}).get("_patches_in_force"), tuple):
                edits = module.__dict__["_patches_in_force"]
                snapshot[f"{place} patches"] = [(id(edit), [id(holder) for holder in edit.holders]) for edit in edits]
            snapshot[f"{place} class"] = [(name, id(value)) for name, value in vars(type(module)).items()]
        for path, parameter in model.named_parameters():
            summed = parameter.detach().double()
            snapshot[f"{which}.{path} weight"] = (float(summed.sum()), float((summed**2).sum()), parameter.data_ptr())
            snapshot[f"{which}.{path} mode"] = (parameter.requires_grad, parameter.grad is None)
    snapshot["configuration"] = str(lens.hf_model.config.to_dict())
    snapshot["attention"] = lens.core.decoder.config._attn_implementation
    snapshot["modes"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    snapshot["placeholders as words"] = placeholders._AS_WORDS.get()
    snapshot["lock"] = _free(lens)
    return snapshot


def _free(lens: Any) -> bool:
    """Whether another thread gets its turn."""
    acquired: list[bool] = []

    def ask() -> None:
        lock: Any = turn(lens.core.decoder.config)
        acquired.append(lock.acquire(timeout=5))
        if acquired[0]:
            lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return acquired[0]


class Interrupt:
    """Raises before the n-th line that this thread runs inside lensplug; counts them where n is 0."""

    def __init__(self, at: int, kind: type[BaseException]) -> None:
        self.at, self.kind, self.lines, self.where = at, kind, 0, ""
        self._waiting: set[tuple[Any, int]] = set()

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        return self.line if frame.f_code.co_filename.startswith(INSIDE) else None

    def line(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "line" and not self._only_traced(frame):
            self.lines += 1
            if self.lines == self.at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise self.kind("interrupted")
        return self.line

    def _only_traced(self, frame: Any) -> bool:
        """Whether tracing alone can raise here: Python looks for signals where calls and loops end.

        So not at a `try:` of its own, where nothing is run, and not where a `with` block around a lock is come by again
        to release it: the lock's own end is no Python.
        """
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if "with turn(" not in line:
            return line.strip() == "try:"
        place = (frame, frame.f_lineno)
        again = place in self._waiting
        (self._waiting.discard if again else self._waiting.add)(place)
        return again


@contextmanager
def traced(interrupt: Interrupt) -> Iterator[None]:
    """While it lasts, the lines of this thread are counted."""
    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def failing(module: Any, kind: type[BaseException]) -> Iterator[None]:
    """A hook of the test's own raises when the module has run."""

    def fail(*_: Any) -> None:
        raise kind("interrupted")

    handle = module.register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def interrupted(
    count: int, seed: int = 0, engines: tuple[EngineName, ...] = ("hooked_transformer", "bridge")
) -> Outcome:
    """Interrupt so many runs, and compare the state after each with that before.

    Args:
        count: Of all engines together.
        seed: Of the places, kinds and runs; a case is told by seed and number.
        engines: Those of lensplug.
    """
    outcome = Outcome()
    for engine in engines:
        lens = lensplug.wrap(*llava_onevision(), engine=engine)
        inputs = lens.prepare(QUESTION, images=[scene(48, 48)])
        ways = runs(lens, inputs)
        lines = {}
        for name, run in ways.items():
            run()  # what is made once and kept (tables, a family's own hooks) is made now
            with traced(counted := Interrupt(0, KeyboardInterrupt)):
                run()
            lines[name] = counted.lines
        before = state(lens)
        for case in range(count // len(engines)):
            chance = random.Random(f"{seed}-{engine}-{case}")
            name, kind = chance.choice(list(ways)), chance.choice(KINDS)
            outcome_text = _interrupt(lens, ways[name], lines[name], kind, chance)
            outcome.cases += 1
            outcome.interrupted += bool(outcome_text)
            outcome.by_kind[outcome_text.split(" ")[0] or "none"] += 1
            if changed := _difference(before, state(lens)):
                outcome.left.append(
                    f"seed {seed} {engine} case {case}: {name}, {kind.__name__} {outcome_text}: {changed[:3]}"
                    f" ({len(changed)})"
                )
                break  # all that follows would differ too
    return outcome


def _interrupt(lens: Any, run: Callable[[], Any], lines: int, kind: type[BaseException], chance: Any) -> str:
    """Interrupt a run somewhere; where, or nothing if it came through."""
    place = chance.choice(["line", "line", "line", "line", "hook", "tower", "layer"])
    interrupt = Interrupt(chance.randint(1, lines), kind)
    modules = {
        "hook": lens.model.hook_dict[chance.choice(list(lens.model.hook_dict))],
        "tower": lens.hf_model.model.vision_tower,
        "layer": chance.choice(list(lens.model.blocks)),
    }
    where = place
    try:
        with traced(interrupt) if place == "line" else failing(modules[place], kind):
            run()
    except BaseException as error:
        if "interrupted" not in str(error):
            raise
        return f"{where} {interrupt.where}".strip()
    return ""


def _difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in before.keys() | after.keys() if before.get(name, "absent") != after.get(name, "absent")]
