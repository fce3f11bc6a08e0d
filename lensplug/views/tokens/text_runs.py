"""A text without media grouped into runs of tokens, so that attention between them fits a page."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lensplug.positions.groups import Groups
from lensplug.positions.groups import group_positions as group_positions  # a public name of the views
from lensplug.positions.words import running_text


def group_runs(texts: Sequence[str], run: int) -> Groups:
    """Neighbouring positions of a text in runs of `run`; positions without text are named by their number."""
    token_names = [text or str(position) for position, text in enumerate(texts)]
    pieces = token_names if run == 1 else running_text(token_names)
    names = ["".join(pieces[first : first + run]).strip() for first in range(0, len(pieces), run)]
    # CircuitsVis removes all white space from a name.
    return Groups(torch.arange(len(token_names)) // run, [name.replace(" ", "·") or "·" for name in names])
