"""How far two tensors are apart, as a fraction of what is expected, and the checks made of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lensplug.proof.report import Check

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}
"""What rounding explains in a dtype, as a fraction of the root mean square of a position; float64: as in `parity`."""

ROUNDINGS = 16
"""How many times the effect of one rounding a difference may be: it happens in every layer, in both models."""
AT_MOST = 1e-2
"""No rounding explains more, in float32."""


def explained(effect: float) -> float:
    """What rounding explains in a model that makes more of it than others.

    Random and chaotic models turn a rounding of their input into a difference a thousand times as large. `effect` is
    what one rounding of the stream does to Hugging Face's own numbers; no constant is right for all of them.
    """
    return min(ROUNDINGS * effect, AT_MOST)


NUMBERS = 1e30
"""What is larger stands for minus infinity, as models write it into logits that they forbid, and measures nothing."""


def apart(found: Tensor, expected: Tensor, size: Tensor | None = None) -> float:
    """The largest difference at a position, as a fraction of that position's root mean square.

    Args:
        found: What the wrapped core made, `[... width]`.
        expected: What Hugging Face made.
        size: In place of `expected`, what a difference is measured by.

    Returns:
        Infinite where shapes differ, or a number is NaN or infinite in one of them only.
    """
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    found, expected = found.detach().float(), expected.detach().float()
    by = expected if size is None else size.detach().float()
    by = by.where(by.abs() < NUMBERS, torch.zeros_like(by)).square().mean(dim=-1, keepdim=True).sqrt()
    difference = (found - expected).abs() / by.clamp(min=1e-30)
    # Where nothing differs the size does not matter, also where it is zero, or both are -inf.
    same = (found == expected) | ((found < -NUMBERS) & (expected < -NUMBERS))
    difference = torch.where(same, 0.0, difference)
    return float(difference.nan_to_num(nan=torch.inf).max())


@dataclass
class Tally:
    """The differences of one check, collected over layers and prompts."""

    name: str
    tolerance: float
    explained: Callable[[], float] | None = None
    """What rounding explains in this model. It takes a run, and is asked only where a difference is larger."""
    worst: float = 0.0
    where: str = ""
    count: int = 0
    _failed: bool = field(default=False)

    def allows(self, number: float) -> bool:
        """Whether rounding explains a difference."""
        if not number <= self.tolerance and self.explained is not None:
            self.tolerance, self.explained = max(self.tolerance, self.explained()), None
        return number <= self.tolerance

    def add(self, number: float, where: str) -> None:
        """Note a difference; of several beyond the tolerance the first counts, the place where a fault begins."""
        self.count += 1
        if self._failed:
            return
        self._failed = not self.allows(number)
        if self._failed or number > self.worst:
            self.worst, self.where = number, where

    def check(self, missing: str = "nothing to compare") -> Check:
        """The check; without any difference noted it is not proved, for the reason `missing`."""
        if not self.count:
            return Check(self.name, "not proved", why=missing)
        return Check(self.name, "failed" if self._failed else "passed", self.worst, self.tolerance, self.where)


def attempted(names: Sequence[str], make: Callable[[], Sequence[Check]]) -> list[Check]:
    """The checks that a function makes; one that raises has failed, and its error says why.

    A wrapped core that is wrong may raise anything where it runs.
    """
    try:
        return list(make())
    except Exception as error:  # noqa: BLE001
        said = str(error).splitlines()[0][:300] if str(error) else ""
        return [Check(names[0], "failed", why=f"could not run ({type(error).__name__}: {said})")]
