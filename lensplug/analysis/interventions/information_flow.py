"""Information flow: in which layers does the answer need that one part of the prompt reads another?

Method, for each path (from, to) and each layer l:

1. Read p, the probability of the target token behind the prompt.
2. Cut the path in the layers around l, a window of k layers clipped at the first and the last: queries at `to` do not
   see keys at `from` (attention knockout: scores of minus infinity, softmax renormalises over the keys that are left).
   Read p'.
3. change = (p' - p) / p, in per cent. -100 is all of the probability, 0 none.
4. Control: cut as many other keys, drawn at random from those that the queries see outside of `from`, for the same
   queries in the same layers; several draws. A path matters where its change is further from 0 than its control's.

The window is k = 9 as in the paper for models of 32 layers and more; of smaller ones the same share of the layers, as
an odd number (7 of 24, 3 of 12, 1 of 6).

When to use it: to see when a picture or sound reaches the question and when the answer, over examples which the model
answers rightly; by region (`interventions.grid_regions`) or span of time (`Seconds`), which part of it.

When not to use it: where p is small to begin with, a relative change can be of any size. Redundant routes hide each
other: cut alone, neither changes anything. What was read before the window stays read. Random keys can be ones that
every query leans on (the first position, say), so that a control can cost more than a path; and where the prompt has
few other keys, the control cuts all of them (`control_keys`): of a picture that is nearly all of a prompt there is no
control, and a warning says so; its regions have some.

Source: Zhang et al. 2024, "Cross-modal Information Flow in Multimodal Large Language Models", arXiv 2411.18620 (section
4); Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models", arXiv 2304.14767.
The control by random keys is ours.

Example:
    examples = [analysis.Example("What is the color? Answer single word.", "Red", images=[picture])]
    flow = analysis.information_flow(lens, examples, paths=[("image", "last"), ("question", "last")], progress=False)
    flow.change                                       # [example path layer], in per cent
    flow.mean()                                       # over examples, with bootstrap intervals
    views.information_flow(flow)
    inputs = lens.prepare("What is the color? Answer single word.", images=[picture])
    from lensplug.interventions import grid_regions
    cells = {name: (cell, "last") for name, cell in grid_regions(2, 2).items()}
    analysis.information_flow(lens, inputs, "Red", paths=cells, progress=False)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lensplug.analysis.interventions.ablation_run import Example, prepared
from lensplug.analysis.interventions.answer_scoring import answer_tokens
from lensplug.analysis.interventions.flow_paths import (
    Edge,
    Path,
    Paths,
    default_window,
    edges_of,
    named_paths,
    windows_of,
)
from lensplug.analysis.interventions.flow_result import InformationFlow
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance
from lensplug.errors import LensplugError, LensplugWarning
from lensplug.inputs.logit_targets import Token, terms_of
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.interventions.layers_and_heads import Layers, layers_of
from lensplug.validation.arguments import at_least, checked

MOST_DRAWS = 1000
IMPROBABLE = 0.01
"""Below it a relative change says little."""
FEW = 0.1
"""Of the keys of a path; with fewer others than that there is no control."""


@checked
def information_flow(
    lens: Lens,
    examples: MultimodalInput | Sequence[Example],
    target: Token | None = None,
    *,
    paths: Paths | None = None,
    window: int | None = None,
    layers: Layers = None,
    draws: int = 3,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
) -> InformationFlow:
    """Cut paths of attention, one window of layers after another, and see what is left of the target's probability.

    Positions before the first that a path leads to are run once for all windows, paths and draws; those behind run in
    batches (`lens.edited_runs`), so that a path to the last position costs one position.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        examples: Inputs of `prepare` or `encode`, or examples with their answers; of an answer of several tokens the
            first is the target, as in the paper.
        target: For inputs, whose probability is read behind the last position: a word that is one token, an id, or ids
            `[example]`.
        paths: From where to where, places as in `lensplug.interventions`: ("image", "last"), (Region(box), "question"),
            (Seconds(0, 1), "last"), (Words("color"), "last"); or a dict of names and such pairs. By default each
            medium to "last" and to "question", and "question" to "last".
        window: How many layers are cut together; see the module for the default. 0: none, which changes nothing.
        layers: Around which layers; all by default.
        draws: How many random controls of each path and window; 0 for none.
        seed: Random seed of the controls; the same keys in every window.
        batch_size: How many examples are prepared at once.
        progress: Show a bar.

    Returns:
        Log-probabilities under each path, layer and control, and the changes.

    Raises:
        LensplugError: If there are no examples, a target is missing or not one token, a place or path is not there, or
            an option is out of range.
    """
    at_least(0, draws=draws)
    if draws > MOST_DRAWS:
        raise LensplugError(f"draws is {draws}, expected at most {MOST_DRAWS}: each is a run of every path and window.")
    at_least(1, batch_size=batch_size)
    n_layers = int(lens.model.cfg.n_layers)
    width = default_window(n_layers) if window is None else window
    at_least(0, window=width)
    around = layers_of(layers, n_layers)
    if not around:
        raise LensplugError("there are no layers: leave layers out for all.")
    windows = windows_of(around, width, n_layers)
    sweep = _Sweep(lens, windows, draws, seed)
    batches = _batches(lens, examples, target, batch_size)
    parts, names = [], None
    with tqdm(total=len(examples), desc="information_flow", unit="example", disable=None if progress else True) as bar:
        for inputs, ids, prompts in batches:
            named = named_paths(paths, inputs)
            if names is not None and names != list(named):
                raise LensplugError(f"examples have other paths by default, {names} and {list(named)}: give paths=.")
            names = list(named)
            parts.append(sweep.of_batch(inputs, ids, named, bar))
            parts[-1]["examples"] = prompts
            parts[-1]["targets"] = tuple(_text(lens.tokenizer, token) for token in ids.tolist())
    assert names is not None
    joined: dict[str, Any] = {
        name: torch.cat([part[name] for part in parts])
        if isinstance(parts[0][name], Tensor)
        else tuple(text for part in parts for text in part[name])
        for name in parts[0]
    }
    _say_what_is_improbable(joined["baseline"], joined["targets"])
    if draws:
        _say_what_has_no_control(names, joined["keys"], joined["control_keys"])
    convention = (
        f"paths cut in windows of {width} layers; relative change of the target's probability; control: as many random"
        " other keys that the queries see"
    )
    return InformationFlow(
        **joined,
        paths=tuple(names),
        layers=tuple(around),
        windows=tuple((each.start, each.stop - 1) for each in windows),
        provenance=Provenance.of_model(
            lens.model, "information_flow", convention, options={"draws": draws, "seed": seed}
        ),
    )


def _say_what_is_improbable(baseline: Float[Tensor, " example"], targets: Sequence[str]) -> None:
    """Warn of targets that the model does not say: a change of next to nothing can be of any size."""
    improbable = (baseline < math.log(IMPROBABLE)).nonzero()[:, 0].tolist()
    if improbable:
        first = improbable[0]
        warnings.warn(
            f"the target's probability is below {IMPROBABLE} in {len(improbable)} of {len(targets)} example(s)"
            f" ({math.exp(float(baseline[first])):.1e} of {targets[first]!r} in example {first}): relative changes of"
            " it can be of any size, and dominate a mean. Take what the model answers (lens.generate) as a target.",
            LensplugWarning,
            stacklevel=4,
        )


def _say_what_has_no_control(
    paths: Sequence[str], keys: Int[Tensor, "example path"], control_keys: Int[Tensor, "example path"]
) -> None:
    """Warn of paths with next to no other keys: cutting all of those is no control of cutting many."""
    example, path = (control_keys < FEW * keys).nonzero(as_tuple=True)
    if len(path):
        named = ", ".join(repr(paths[index]) for index in dict.fromkeys(path.tolist()))
        first = int(example[0]), int(path[0])
        warnings.warn(
            f"there is no control of {named}: {paths[first[1]]!r} cuts {int(keys[first])} keys, and its control all"
            f" {int(control_keys[first])} others, which every query may lean on (the first position). Leave out"
            " beyond_control there; regions of the medium (interventions.grid_regions) have controls of as many keys.",
            LensplugWarning,
            stacklevel=4,
        )


def _batches(lens: Lens, examples: MultimodalInput | Sequence[Example], target: Token | None, batch_size: int) -> Any:
    """Inputs, the target of each, and the prompts as texts; what is wrong is refused before anything is run."""
    vocabulary = int(lens.model.cfg.d_vocab_out)
    if isinstance(examples, MultimodalInput):
        if target is None:
            raise LensplugError("target is missing: give a word that is one token, an id, or ids [example].")
        ids = terms_of(target, -1, examples, lens.tokenizer, vocabulary).ids[:, 0, 0]
        return [(examples, ids, tuple("".join(_said(examples, example)) for example in range(len(examples))))]
    if target is not None:
        raise LensplugError("target is given with examples, which have answers of their own: leave it out.")
    if not examples:
        raise LensplugError("there are no examples.")
    firsts = torch.tensor([answer_tokens(example.answer, lens.tokenizer, vocabulary)[0] for example in examples])
    return (
        (
            prepared(lens, examples[start : start + batch_size]),
            firsts[start : start + batch_size],
            tuple(example.text for example in examples[start : start + batch_size]),
        )
        for start in range(0, len(examples), batch_size)
    )


def _said(inputs: MultimodalInput, example: int) -> list[str]:
    """The words of a prompt: the user's where they are known, else all text."""
    words = inputs.modality.user_words
    chosen = (inputs.modality.mask("text") & ~inputs.modality.special if words is None else words)[example]
    return [text for text, is_said in zip(inputs.str_tokens[example], chosen.tolist(), strict=True) if is_said]


def _text(tokenizer: Any, token: int) -> str:
    return str(token) if tokenizer is None else str(tokenizer.decode([token]))


class _Sweep:
    """All windows, paths and draws."""

    def __init__(self, lens: Lens, windows: Sequence[range], draws: int, seed: int) -> None:
        self._lens, self._windows, self._draws, self._seed = lens, windows, draws, seed

    def of_batch(
        self, inputs: MultimodalInput, ids: Int[Tensor, " example"], paths: Mapping[str, Path], bar: Any
    ) -> dict[str, Any]:
        """What is measured of some examples, each by itself."""
        last = terms_of(0, -1, inputs, None, int(self._lens.model.cfg.d_vocab_out)).rows.cpu()
        measured = []
        for example, edges in enumerate(edges_of(inputs, paths)):
            measured.append(self._of_example(inputs[example : example + 1], edges, last[example], int(ids[example])))
            bar.update()
        return {name: torch.stack([each[name] for each in measured]) for name in measured[0]}

    def _of_example(
        self, inputs: MultimodalInput, edges: Sequence[Edge], last: Int[Tensor, " row"], target: int
    ) -> dict[str, Tensor]:
        controls = [edge.controls(self._draws, self._seed) for edge in edges]
        variants: list[Any] = [[]]
        for edge, drawn in zip(edges, controls, strict=True):
            variants += [edge.knockout(window) for window in self._windows]
            variants += [edge.control_knockout(keys, window) for keys in drawn for window in self._windows]

        def read(logits: Float[Tensor, "variant 1 1 d_vocab"]) -> Float[Tensor, " variant"]:
            return logits[:, 0, 0].float().log_softmax(dim=-1)[:, target].cpu()

        with self._lens.edited_runs(inputs, last[None]) as runs:
            found = runs.under_each(variants, read)
        if bool(found.isnan().any()):
            raise LensplugError("the model gives NaN: use bfloat16 or float32.")
        table = found[1:].view(len(edges), 1 + self._draws, len(self._windows))
        counts = torch.tensor([keys.shape[1] for keys in controls])
        return {
            "log_probability": table[:, 0],
            "control": table[:, 1:].masked_fill((counts == 0)[:, None, None], torch.nan),
            "baseline": found[0],
            "keys": torch.tensor([edge.n_keys for edge in edges]),
            "control_keys": counts,
        }
