"""Probes: whether a linear classifier can read a property of examples from activations, layer by layer.

Method, for each layer (and head), with vectors x and labels of a data set:

1. Divide the examples into folds, with the classes in equal parts, and whole groups in one fold.
2. For each fold, train on all others and predict the fold. Training standardises each dimension to mean 0 and variance
   1 (of the training examples), then minimises a loss with an L2 penalty of weight λ (`regularisation`), by
   scikit-learn: logistic, Σ log-loss + λ/2 |w|²; ridge, Σ (y - w·x - b)² + λ |w|² with y = ±1.
3. Accuracy = the fraction of held-out examples that are predicted right. Its interval is Wilson's at 95 %, for the
   number of independent examples that the groups are worth (`accuracy_interval`).
4. Control: the same with labels in random order (`shuffles` times). A probe that is above chance there reads structure
   of the sample, not the property.
5. Train once more on all examples. With the scaling taken back, score = |w| d·x + b: d is the direction, of length 1.

Steering: adding a·d to the activation raises the score of the class by a |w| (`gain`). `spread`, the standard deviation
of d·x over the examples, is a natural size of a. With two classes there is one direction, towards the second.

    move = 4 * probe.spread[3, 0] * probe.direction[3, 0]
    lens.run_with_hooks(inputs, fwd_hooks=[(("resid_post", 3), lambda x, hook: x + move.to(x))])

When to use it: to find in which layers, and at which positions, a property can be read linearly, and in what direction
it lies.

When not to use it: that a property can be read does not say that the model uses it: steer along the direction, or
ablate it, and see whether answers change. With more dimensions than examples a probe separates nearly everything that
it was trained on; only held-out accuracy against the control means something.

Papers: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes", arXiv 1610.01644;
Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks", arXiv 1909.03368.

Example:
    question, angles = "What is the color? Answer single word.", (0, 90, 180, 270)
    images = [image.rotate(angle) for image in (picture, other_picture) for angle in angles]
    batch = lens.prepare([question] * 8, images=[[image] for image in images])
    _, cache = lens.run_with_cache(batch, needs=analysis.activations)
    collected = analysis.activations(cache, batch.modality, pool="image").save("batch-0.safetensors")
    probe = analysis.probe([collected], ["first"] * 4 + ["second"] * 4, folds=4, shuffles=5)
    probe.accuracy                               # [layer]
    probe.direction                              # [layer class d_model]
    views.probe(probe)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lensplug.analysis.probes.activations import Activations
from lensplug.analysis.probes.classifiers import (
    Method,
    Weights,
    classifier,
    held_out_predictions,
    need_scikit_learn,
    one_warning_of_all_fits,
)
from lensplug.analysis.probes.collected import Collected
from lensplug.analysis.probes.folds import Split, refuse_incomplete, shuffled_folds, splits
from lensplug.analysis.probes.labels import class_numbers, group_numbers, refuse_few
from lensplug.analysis.probes.probe_result import Probe
from lensplug.errors import LensplugError
from lensplug.provenance.versions import versions
from lensplug.validation.arguments import at_least, checked

MOST_SHUFFLES = 1000
"""More would take days, and tell no more."""


@checked
def probe(
    activations: Activations | str | Path | Sequence[Activations | str | Path],
    labels: Any,
    *,
    method: Method = "logistic",
    folds: int = 5,
    groups: Any = None,
    shuffles: int = 20,
    regularisation: float = 1.0,
    standardise: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Probe:
    """Train and test a linear classifier of each layer (of "z": each head).

    Files are read layer by layer: a data set of any number of layers needs the memory of some six copies of one layer,
    examples x width x 4 bytes each. The time is that of folds x (shuffles + 1) + 1 fits for each layer and head.

    Args:
        activations: From `analysis.activations`, or a file that its `save` wrote, or a list of these, batch by batch.
        labels: The class of each example, in the order of the activations: texts, whole numbers or truth values, as a
            list, an array or a column of a table.
        method: "logistic" (LogisticRegression) or "ridge" (RidgeClassifier, faster with many classes).
        folds: Into how many parts the examples are divided; each class needs as many examples, or groups.
        groups: What examples are held out together, one for each (the picture of a question); each alone by default.
        shuffles: How often labels are put into random order for control; 0 for none.
        regularisation: The weight λ of the penalty on |w|², above 0; larger is stronger.
        standardise: Scale each dimension to variance 1 first. Without it, the few dimensions with large activations
            decide.
        seed: Which folds, and which random orders.
        progress: Called with a few words before each layer.

    Returns:
        Held-out predictions, accuracies and directions of each layer.

    Raises:
        LensplugError: If scikit-learn is not installed, labels or groups are not one for each example, there is one
            class, or one with fewer examples (groups) than folds, activations are not finite or were made with other
            models or options, or an option is out of range.
    """
    need_scikit_learn()
    at_least(2, folds=folds)
    at_least(0, shuffles=shuffles, seed=seed)
    if shuffles > MOST_SHUFFLES:
        raise LensplugError(f"shuffles is {shuffles}, expected at most {MOST_SHUFFLES}: each is {folds} fits a layer.")
    if regularisation <= 0 or not np.isfinite(regularisation):
        raise LensplugError(f"regularisation is {regularisation:g}, expected a number above 0.")
    if seed >= 2**32:
        raise LensplugError(f"seed is {seed}, expected less than 2**32.")
    data = Collected.of(activations)
    classes, numbers = class_numbers(labels, data.count)
    group = group_numbers(groups, data.count)
    refuse_few(numbers, classes, group, folds)
    parts = splits(numbers, group, folds, seed)
    refuse_incomplete(parts, numbers, classes)
    control = list(shuffled_folds(numbers, group, folds=folds, shuffles=shuffles, seed=seed))
    untrained = classifier(method, regularisation, standardise)
    by_layer = []
    with one_warning_of_all_fits():
        for index, layer in enumerate(data.layers):
            progress(f"probing layer {layer}, {index + 1} of {len(data.layers)}")
            by_layer.append(_of_layer(untrained, data.layer(index), numbers, parts, control))
    fold = np.empty(data.count, dtype=np.int64)
    for number, (_, held_out) in enumerate(parts):
        fold[held_out] = number
    fields = {name: torch.stack([layer[name] for layer in by_layer]) for name in by_layer[0]}
    if not data.by_head:
        fields = {name: value[:, 0] for name, value in fields.items()}
    options = {
        **data.provenance.options, "method": method, "folds": str(folds), "regularisation": f"{regularisation:g}",
        "standardise": str(standardise), "shuffles": str(shuffles), "seed": str(seed),
        "groups": "each example alone" if group is None else "given",
    }  # fmt: skip
    return Probe(
        **fields,
        target=torch.from_numpy(numbers),
        fold=torch.from_numpy(fold),
        group=torch.from_numpy(np.arange(data.count) if group is None else group),
        classes=classes,
        layers=data.layers,
        hook=data.outlines[0].hook,
        method=method,
        provenance=replace(
            data.provenance,
            analysis="probe",
            convention=f"{method} probe of {data.provenance.convention}; {folds} folds",
            versions={**data.provenance.versions, **versions("scikit-learn")},
            options=options,
        ),
    )


def _of_layer(
    untrained: Any,
    values: Float32[np.ndarray, "sample head d_act"],
    numbers: Int64[np.ndarray, " sample"],
    parts: Sequence[Split],
    control: Sequence[tuple[Int64[np.ndarray, " sample"], list[Split]]],
) -> dict[str, Tensor]:
    """The fields of a layer, each with an axis of heads."""
    heads = [
        _of_head(untrained, np.ascontiguousarray(values[:, head]), numbers, parts, control)
        for head in range(values.shape[1])
    ]
    return {name: torch.stack([head[name] for head in heads]) for name in heads[0]}


def _of_head(
    untrained: Any,
    vectors: Float32[np.ndarray, "sample d_act"],
    numbers: Int64[np.ndarray, " sample"],
    parts: Sequence[Split],
    control: Sequence[tuple[Int64[np.ndarray, " sample"], list[Split]]],
) -> dict[str, Tensor]:
    predicted = held_out_predictions(untrained, vectors, numbers, parts)
    shuffled = [
        float((held_out_predictions(untrained, vectors, drawn, found) == drawn).mean()) for drawn, found in control
    ]
    trained = Weights.trained(untrained, vectors, numbers)
    gain = np.linalg.norm(trained.weights, axis=1)
    direction = trained.weights / np.where(gain > 0, gain, 1)[:, None]
    spread = (vectors @ direction.T.astype(np.float32)).std(axis=0, dtype=np.float64)
    return {
        "predicted": torch.from_numpy(predicted.astype(np.int32)),
        "shuffled": torch.tensor(shuffled, dtype=torch.float64),
        "direction": torch.from_numpy(direction.astype(np.float32)),
        "gain": torch.from_numpy(gain.astype(np.float32)),
        "bias": torch.from_numpy(trained.bias.astype(np.float32)),
        "spread": torch.from_numpy(spread.astype(np.float32)),
    }
