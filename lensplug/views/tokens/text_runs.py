"""A text without media in runs of tokens, until attention between them can be drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lensplug.positions.groups import Groups
from lensplug.positions.groups import group_positions as group_positions  # a public name of the views
from lensplug.positions.words import running_text


def group_runs(texts: Sequence[str], run: int) -> Groups:
    """Neighbouring positions of a text in runs of `run`; positions without text are named by their number."""
    named = [text or str(position) for position, text in enumerate(texts)]
    read = named if run == 1 else running_text(named)
    names = ["".join(read[first : first + run]).strip() for first in range(0, len(read), run)]
    # CircuitsVis takes all white space out of a name.
    return Groups(torch.arange(len(named)) // run, [name.replace(" ", "·") or "·" for name in names])
