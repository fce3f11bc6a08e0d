"""A study of ten small scenes, and what each of them gives by itself."""

from __future__ import annotations

import pandas as pd

MODEL = "lensplug.tiny:llava_onevision"


def by_hand(lens, examples: pd.DataFrame, **run):
    """Inputs and cache of each example, run by itself."""
    for row in examples.itertuples():
        inputs = lens.prepare(row.prompt, images=list(row.images))
        yield inputs, lens.run_with_cache(inputs, **run)[1]
