"""Options of which there are a few: each is a Literal, which editors complete, and an error names them all."""

import inspect
import subprocess
import sys
import typing
from collections.abc import Sequence
from types import UnionType

import pytest

import lensplug
from lensplug import LensplugError, analysis, reductions, statistics, study, views
from lensplug.geometry import ImageGrid
from lensplug.validation.arguments import _hints, _members, admitted

CHOSEN = {
    "load.engine", "wrap.engine", "load.dtype", "estimate.dtype",
    "cache_from_attentions.attention_dir", "MultimodalLens.estimate.keep",
    "MultimodalLens.locate.kind", "MultimodalLens.resampler_attention.kind",
    "MultimodalLens.estimate.query_positions", "MultimodalLens.estimate.residual_positions",
    "MultimodalLens.estimate.logit_positions", "MultimodalLens.run_with_cache.keep",
    "MultimodalLens.run_with_cache.query_positions", "MultimodalLens.run_with_cache.residual_positions",
    "MultimodalLens.run_with_cache.logit_positions", "MultimodalLens.run_with_gradients.keep",
    "MultimodalLens.without.positions", "MultimodalLens.logits_at.hidden", "ModalityMap.mask.modality",
    "ImageGrid.to_pixels.view", "ImageGrid.to_cells.view", "ImageGrid.overlap.view", "activation_patching.activation",
    "activation_patching.by", "activation_patching.groups", "attribution_patching.activation",
    "attribution_patching.by", "attribution_patching.groups", "agreement.positions", "deletion_curve.among",
    "direct_attribution.by", "direct_attribution.sinks", "causal_tracing.corruption", "causal_tracing.medium",
    "causal_tracing.restore", "causal_tracing.groups",
    "attention_flow.groups", "attention_flow.head_fusion", "attention_flow.residual", "attention_matrix.groups",
    "attention_matrix.head", "attention_rollout.head_fusion", "attention_rollout.residual",
    "gradient_rollout.contributions", "head_specialization.sinks", "modality_ablation.method",
    "modality_ablation.modality", "modality_ablation.scoring", "modality_null.sinks", "neuron_ablation.value",
    "neuron_ablation.where",
    "received_attention.head", "received_attention.over", "region_attribution.at", "region_attribution.baseline",
    "region_attribution.measure", "region_attribution.method", "region_attribution.regions",
    "received_attention.scale", "AttentionFrom.by_position.head", "HeadSpecialization.average.by",
    "HeadSpecialization.error.by", "HeadSpecialization.top.by", "LogitLens.by_position.measure",
    "ModalityAblation.changes.condition", "ModalityAblation.confusion.condition",
    "ModalityAblation.only_with.condition", "ModalityAblation.per_class.condition",
    "ModalityAblation.transitions.condition", "views.attention_by_layer.head", "views.attention_by_layer.scale",
    "activations.hook", "activations.pool", "domain_neurons.modality", "grounding.medium",
    "circuit_faithfulness.method", "path_patching.receiver", "path_patching.senders", "path_patching.mlps",
    "path_patching.by", "path_patching.groups",
    "modality_interaction.medium",
    "NeuronActivity.probability.modality", "probe.method", "Study.run.executor", "StudyResult.compare.correction",
    "StudyResult.difference.correction", "StudyResult.mean.interval", "statistics.adjusted_p_values.correction",
    "statistics.group_differences.correction", "statistics.paired_differences.correction",
    "attention_flow.sinks", "attention_from.sinks", "attention_matrix.sinks", "attention_rollout.sinks",
    "gradient_rollout.sinks", "received_attention.sinks", "sink_share.sinks", "spatial_entropy.sinks",
    "spatial_entropy.view", "sinks.rules", "ImageGrid.cells.view",
    "views.attention_matrix.scale", "views.head_specialization.by", "views.image_overlay.view",
}  # fmt: skip
"""Every parameter of a public function that takes one of a few names."""


def public_functions():
    """Name -> every function and method that users call."""
    for prefix, module in (("", lensplug), ("", analysis), ("statistics.", statistics), ("", study), ("views.", views)):
        for name in dir(module):
            found = getattr(module, name)
            if inspect.isfunction(found):
                yield prefix + name, found
            elif inspect.isclass(found):
                yield from methods(found)
    yield from methods(ImageGrid)


def methods(found):
    for name in dir(found):
        method = inspect.getattr_static(found, name)
        method = getattr(method, "__func__", method)
        if not name.startswith("_") and inspect.isfunction(method):
            yield f"{found.__name__}.{name}", method


def choices_of(hint):
    """The names that a hint has, and whether something else goes as well."""
    return [
        name for member in _members(hint) if typing.get_origin(member) is typing.Literal for name in member.__args__
    ]


def with_choices():
    return {
        f"{name}.{parameter}": (function, parameter, hint)
        for name, function in public_functions()
        for parameter, hint in _hints(function).items()
        if choices_of(hint)
    }


def test_what_has_choices_is_typed_so():
    assert set(with_choices()) == CHOSEN


@pytest.mark.parametrize(
    "name", sorted(CHOSEN - {"load.dtype", "estimate.dtype"})
)  # torch's names, with and without "torch."
def test_another_name_is_refused_with_those_that_there_are(name):
    function, parameter, hint = with_choices()[name]
    assert hasattr(function, "__wrapped__"), f"{name} is not checked"
    with pytest.raises(LensplugError) as refused:
        admitted("none of them", hint, parameter)
    said = str(refused.value)
    assert said.startswith(f"{parameter} is 'none of them', expected ")
    assert all(repr(choice) in said for choice in choices_of(hint))
    assert "Literal" not in said and "[" not in said
    for choice in choices_of(hint):
        assert admitted(choice, hint, parameter) == choice


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (typing.Literal["a"], "'a'"),
        (typing.Literal["a", "b"], "'a' or 'b'"),
        (typing.Literal["a", "b"] | None, "'a', 'b' or None"),
        (typing.Literal["a"] | int | None, "'a', a whole number or None"),
        (typing.Optional[typing.Literal["a"]], "'a' or None"),  # noqa: UP045
    ],
)
def test_choices_in_words(hint, words):
    assert isinstance(hint, UnionType) or typing.get_origin(hint) is not None
    with pytest.raises(LensplugError, match=f"which is 'c', expected {words}\\.$"):
        admitted("c", hint, "which")


OPTIONS_OF_REDUCTIONS = """
from lensplug import LensplugError
from lensplug.reductions import Cam, GradientRolloutRows
from lensplug.reductions.mixing import Mixing

for make in (
    lambda: Mixing(head_fusion="median"), lambda: Mixing(residual="median"), lambda: Cam("signed"),
    lambda: GradientRolloutRows(contributions="all"),
):
    try:
        make()
    except LensplugError as refused:
        print(refused)
"""


def test_options_of_reductions_too():
    """In a Python of its own: where shapes are checked, so are the fields of a dataclass, before it does it itself."""
    shown = subprocess.run([sys.executable, "-c", OPTIONS_OF_REDUCTIONS], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [
        "head_fusion is 'median', expected one of 'mean', 'max', 'min', 'value_weighted'.",
        "residual is 'median', expected a weight from 0 to 1, or 'measured'.",
        "sign is 'signed', expected 'positive' or 'negative'.",
        "contributions is 'all', expected 'positive', 'negative' or 'signed'.",
    ]


def test_a_list_of_reductions_may_name_each():
    with pytest.raises(
        LensplugError, match="keep has 'cam', expected 'head_mean', 'modality_mass', 'received', 'rollout', or a"
    ):
        reductions.chosen(["head_mean", "cam"])


def test_every_entry_of_a_list_of_names_is_looked_at():
    hint = typing.Literal["a", "b"] | Sequence[typing.Literal["a", "b"]]
    assert admitted(["a", "b"], hint, "which") == ["a", "b"]
    for _ in range(20):  # beartype looks at one entry, by chance
        with pytest.raises(LensplugError, match="^an entry of which is 'c', expected 'a' or 'b'.$"):
            admitted(["a", "b", "a", "c"], hint, "which")


def test_every_entry_of_a_list_is_looked_at():
    entries = [*range(2000), "one"]
    for place in (0, 1000, 2000):
        entries[place], entries[2000 if place < 2000 else 0] = "one", 0
        with pytest.raises(LensplugError, match="positions is the list"):
            admitted(entries, Sequence[int], "positions")
        entries[place] = 0
    assert admitted(entries, Sequence[int], "positions") is entries
