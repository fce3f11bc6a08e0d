"""MultimodalLens: a multimodal model whose language core is a TransformerLens model.

Created by `lensplug.load` or `lensplug.wrap`. It prepares inputs with the model's own processor and code, runs the core
with TransformerLens's hooks and cache, and checks that both compute the same. The TransformerLens model itself is
`lens.model`, with all its methods; it takes the inputs of the lens wherever it takes tokens.

Its methods are in files by what they are for; each says what it takes, and what it does is in `lensplug.running`,
`lensplug.inputs` and `lensplug.interventions`:

- `making_inputs`: `prepare`, `encode`, `with_answer`, `without`, `with_media`
- `runs`: `run_with_cache`, `estimate`, `run_with_gradients`, `check`
- `answers`: `generate`
- `hooks_and_edits`: `run_with_hooks`, `hooks`, `intervene`, `placeholders_as_words`
- `adapters`: `adapter`
- `locating`: `locate`, `resampler_attention`
- `sweeps`: `logits_at`, `logits_only`, `edited_runs`
"""

from __future__ import annotations

from lensplug.lens.adapters import Adapters
from lensplug.lens.answers import Answers
from lensplug.lens.locating import Locates
from lensplug.lens.making_inputs import MakesInputs
from lensplug.lens.runs import Runs
from lensplug.lens.sweeps import Sweeps

__all__ = ["MultimodalLens"]


class MultimodalLens(MakesInputs, Runs, Answers, Sweeps, Adapters, Locates):
    """A Hugging Face multimodal model with its language core under TransformerLens.

    Threads that use one lens, or several on one Hugging Face model, wait for each other, also where they call
    `lens.model` itself; hooks that you leave on `lens.model` act in all their runs (see `lensplug.hf.run_lock`).
    A model in training mode is refused by every run.
    """
