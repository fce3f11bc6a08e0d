"""What a model and its runs would take, as a table: the result of `lensplug.estimate`."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lensplug.running.memory_estimate import ROOM


@dataclass(frozen=True)
class ModelEstimate:
    """Bytes of weights in each form, and of runs above them."""

    name: str
    parameters: int
    """How many numbers the weights are; tied ones once."""
    core_parameters: int
    """Those of the language core: decoder and head."""
    tokens: int
    """Positions of the prompt, those of its media among them."""
    examples: int
    dtype: str
    """Of the runs."""
    weights: dict[str, int]
    """By dtype, "int8" and "4-bit" as bitsandbytes keeps them."""
    runs: dict[str, int]
    """By what is kept: peak memory above the weights. Empty where the core cannot be wrapped (`why_no_runs`)."""
    free: int
    """What is free on `device` now."""
    device: str
    why_no_runs: str = ""

    def fits(self, weights: str | None = None, run: str | None = None) -> bool:
        """Whether weights of this form, and with them a run, fit into what is free now.

        Args:
            weights: A key of `weights`; the dtype of the runs by default.
            run: A key of `runs`; none by default.
        """
        needed = self.weights[weights or self.dtype] + (self.runs[run] if run else 0)
        return needed <= ROOM * self.free

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each form of the weights, and for each kind of run: `part`, `bytes`, `fits`.

        A run fits where it does beside the weights in its dtype.
        """
        rows = [("weights", form, size, self.fits(form)) for form, size in self.weights.items()]
        rows += [("run", kept, size, self.fits(run=kept)) for kept, size in self.runs.items()]
        return pd.DataFrame(rows, columns=["part", "of", "bytes", "fits"])

    def __repr__(self) -> str:
        """The table, in gigabytes."""
        lines = [
            f"{self.name}: {self.parameters / 1e9:.3f} billion parameters ({self.core_parameters / 1e9:.3f} in the"
            f" language core); {_in_words(self.free)} free on {self.device}"
        ]
        lines += [
            f"  {_in_words(size):>9}  {'fits' if fits else 'too large':9}  "
            + (f"weights in {of}" if part == "weights" else f"above them, {of}")
            for part, of, size, fits in self.to_dataframe().itertuples(index=False)
        ]
        lines.append(f"  Runs: {self.examples} x {self.tokens} positions in {self.dtype}. {self.why_no_runs}".rstrip())
        return "\n".join(lines)


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
