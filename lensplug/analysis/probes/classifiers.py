"""scikit-learn's linear classifiers, which are an extra, and their weights in the space of the activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64

from lensplug.analysis.probes.folds import Split
from lensplug.errors import LensplugError, LensplugWarning

Method = Literal["logistic", "ridge"]
ITERATIONS = 1000
"""At most so many of the logistic regression's solver."""


def need_scikit_learn() -> None:
    """Refuse where scikit-learn is not installed, before anything is computed.

    Raises:
        LensplugError: If it is not.
    """
    try:
        import_module("sklearn")
    except ImportError as error:
        raise LensplugError("probe needs scikit-learn: pip install 'lensplug[probes]'.") from error


def classifier(method: Method, regularisation: float, standardise: bool) -> Any:
    """A pipeline that is fitted on training examples alone, its scaling too."""
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    linear = (
        RidgeClassifier(alpha=regularisation)
        if method == "ridge"
        else LogisticRegression(C=1 / regularisation, max_iter=ITERATIONS)
    )
    return make_pipeline(StandardScaler(), linear) if standardise else make_pipeline(linear)


def held_out_predictions(
    untrained: Any,
    vectors: Float32[np.ndarray, "sample d_act"],
    numbers: Int64[np.ndarray, " sample"],
    splits: Sequence[Split],
) -> Int64[np.ndarray, " sample"]:
    """The class predicted for each example by the classifier that was not trained on its fold."""
    from sklearn.model_selection import cross_val_predict

    predicted: np.ndarray = cross_val_predict(untrained, vectors, numbers, cv=splits)
    return predicted


@dataclass(frozen=True)
class Weights:
    """What a linear classifier adds up: score = weights @ activation + bias."""

    weights: Float64[np.ndarray, "class d_act"]
    bias: Float64[np.ndarray, " class"]

    @classmethod
    def trained(
        cls, untrained: Any, vectors: Float32[np.ndarray, "sample d_act"], numbers: Int64[np.ndarray, " sample"]
    ) -> Weights:
        """Of a classifier trained on all examples, with the scaling taken back."""
        from sklearn.base import clone

        steps = [step for _, step in clone(untrained).fit(vectors, numbers).steps]
        weights, bias = np.atleast_2d(steps[-1].coef_).astype(np.float64), np.atleast_1d(steps[-1].intercept_)
        if len(steps) > 1:
            weights = weights / steps[0].scale_
            bias = bias - weights @ steps[0].mean_
        return cls(weights, bias.astype(np.float64))


@contextmanager
def one_warning_of_all_fits() -> Iterator[None]:
    """Within it, fits that do not converge are counted, and said once at its end; other warnings are passed on."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        yield
    unfinished = [warning for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    for warning in caught:
        if warning not in unfinished:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if unfinished:
        warnings.warn(
            f"{len(unfinished)} fits did not converge in {ITERATIONS} iterations: their accuracies are those of weights"
            " that were still moving; give a larger regularisation=, or standardise=True.",
            LensplugWarning,
            stacklevel=4,
        )
