"""`Proof`: what was checked of a wrapped core against its Hugging Face model, check by check, with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["passed", "failed", "not proved"]
"""What became of a check; "not proved": it could not be made, and its `why` says for what reason."""
Standing = Literal["tested family", "proved", "failed", "not proved"]
"""On what a lens stands: tests of lensplug's own, this proof, or neither."""


@dataclass(frozen=True)
class Check:
    """One thing that was compared, and the largest difference."""

    name: str
    """What was compared: "logits", "each layer alone", ..."""
    outcome: Outcome
    number: float | None = None
    """The largest difference, as a fraction of the size of what was expected; None where nothing was compared."""
    tolerance: float | None = None
    """What rounding explains."""
    where: str = ""
    """The place of the first difference beyond the tolerance, else of the largest: "layer 3", "layer 3, image"."""
    why: str = ""
    """For what reason it failed to run, or is not proved."""

    def __str__(self) -> str:
        """One line."""
        numbers = "" if self.number is None else f" {self.number:.1e} (allowed {self.tolerance:.0e})"
        place = f" at {self.where}" if self.where and self.outcome == "failed" else ""
        reason = f": {self.why}" if self.why else ""
        return f"{self.name} {self.outcome}{numbers}{place}{reason}"


@dataclass(frozen=True)
class Proof:
    """What was proved of one wrapped core when it was wrapped, and what was not.

    Printed it takes at most ten lines; `to_dataframe` has every check.
    """

    model: str
    """The name of the model."""
    engine: str
    dtype: str
    """In which the checks ran: float32 also for half precision, where rounding would hide a fault."""
    checks: tuple[Check, ...]
    standing: Standing
    seconds: float = 0.0
    why: str = ""
    """The reason, where nothing was checked."""

    @property
    def passed(self) -> bool:
        """Whether checks were made, and none failed."""
        return self.standing == "proved"

    @property
    def first_failure(self) -> Check | None:
        """The first check that failed; None where none did."""
        return next((check for check in self.checks if check.outcome == "failed"), None)

    def __str__(self) -> str:
        """At most ten lines."""
        if not self.checks:
            return f"{self.model} ({self.engine}): {self.standing}{': ' if self.why else ''}{self.why}"
        grouped: dict[str, list[Check]] = {
            outcome: [check for check in self.checks if check.outcome == outcome]
            for outcome in ("failed", "passed", "not proved")
        }
        lines = [f"{self.model} ({self.engine}, {self.dtype}): {self.standing} in {self.seconds:.1f} s"]
        lines += [f"  {check}" for check in grouped["failed"][:4]]
        if grouped["passed"]:
            largest = max(grouped["passed"], key=lambda check: (check.number or 0.0) / (check.tolerance or 1.0))
            names = ", ".join(dict.fromkeys(check.name for check in grouped["passed"]))
            lines.append(f"  passed: {names}")
            if largest.number is not None:
                lines.append(f"  largest share of a tolerance: {largest}")
        unproved = grouped["not proved"]
        lines += [f"  {check}" for check in unproved[: 2 if len(unproved) > 3 else 3]]
        if len(unproved) > 3:
            lines.append(f"  and {len(unproved) - 2} more not proved: {', '.join(c.name for c in unproved[2:])}")
        return "\n".join(lines)

    def to_dataframe(self) -> Any:
        """One row for each check."""
        import pandas

        columns = ("name", "outcome", "number", "tolerance", "where", "why")
        return pandas.DataFrame(
            [{name: getattr(check, name) for name in columns} for check in self.checks], columns=columns
        )

    def short(self) -> str:
        """A few words for `provenance`."""
        if not self.checks:
            return self.standing
        count = sum(check.outcome == "passed" for check in self.checks)
        unproved = sum(check.outcome == "not proved" for check in self.checks)
        return f"{self.standing}: {count} checks passed, {unproved} not proved"


def concluded(model: str, engine: str, dtype: str, checks: Sequence[Check], seconds: float) -> Proof:
    """The proof that these checks make."""
    standing: Standing = "failed" if any(check.outcome == "failed" for check in checks) else "proved"
    return Proof(model, engine, dtype, tuple(checks), standing, seconds)
