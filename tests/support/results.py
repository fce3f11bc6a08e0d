"""One result of every analysis, from two questions about two pictures to the tiny trained LLaVA-OneVision."""

from __future__ import annotations

import random

import pandas as pd

import lensplug
from lensplug import analysis
from lensplug.analysis.result import Result
from lensplug.interventions import grid_regions
from lensplug.study.differences import ComparisonOptions, differences, side
from lensplug.study.groups import Chunks
from lensplug.study.means import IntervalOptions, means
from lensplug.tiny.scenes import draw_scene

QUESTION = "What is the color? Answer single word."
COLORS = ("red", "blue")


def group_results(
    heads: analysis.HeadSpecialization, said: analysis.LogitLens, curve: analysis.DeletionCurve
) -> dict[str, Result]:
    """Means and differences, as a study makes them of its examples."""
    examples = pd.DataFrame(
        {"id": ["a", "b", "c", "d"], "sha256": [["a"], ["b"], ["c"], ["d"]], "color": ["red", "blue", "red", "blue"]}
    )
    options = IntervalOptions("bootstrap", None, 0.95, 20, 0)
    of_heads = [(examples, analysis.HeadSpecialization.combine([heads, heads]))]
    of_layers = [(examples, analysis.LogitLens.combine([said, said]))]
    of_curves = [(examples, analysis.DeletionCurve.combine([curve, curve]))]
    made: dict[str, Result] = {}
    every: tuple[tuple[str, Chunks, str], ...] = (
        ("heads", of_heads, "mass"),
        ("layers", of_layers, "target_log_probability"),
        ("settled", of_layers, "settled"),
        ("deletion", of_curves, "log_probability"),
    )
    for name, chunks, number in every:
        mean = means(chunks, name, "color", number, options)
        assert mean is not None
        red, blue = (side(chunks, color, number, "color") for color in COLORS)
        made[f"group_means, {name}"] = mean
        made[f"group_differences, {name}"] = differences(
            red, blue, name, ComparisonOptions(None, None, "holm", 0.95, 10, 0)
        )
    return made


def every_result(seed: int = 0) -> dict[str, Result]:
    """Name -> result, with options that fill the fields which may be absent."""
    lens = lensplug.tiny.llava_onevision()
    scenes = [
        draw_scene(random.Random(10 * seed + index), size=(48, 48), color=color) for index, color in enumerate(COLORS)
    ]
    pictures = [scene.image for scene in scenes]
    inputs = lens.prepare([QUESTION, QUESTION], images=[[picture] for picture in pictures])
    flipped = lens.prepare([QUESTION, QUESTION], images=[[picture] for picture in pictures[::-1]])
    answers = [scene.color.capitalize() for scene in scenes]
    examples = [
        analysis.Example(QUESTION, answer, images=[picture]) for picture, answer in zip(pictures, answers, strict=True)
    ]
    _, cache = lens.run_with_cache(inputs)
    _, kept, grads = lens.run_with_gradients(inputs, target=answers[0], keep="gradient_rollout")
    heads = analysis.head_specialization(cache, inputs.modality)
    rollout = analysis.attention_rollout(cache, rows=-1)
    relevance = analysis.gradient_rollout(kept, grads, rows=-1)
    curve = analysis.deletion_curve(lens, inputs, relevance, answers[0], steps=2, draws=2)
    cells = grid_regions(2, 4)
    activity = analysis.neuron_activity(cache, inputs.modality, domain=COLORS)
    return {
        "head_specialization": heads,
        "heads_by_layer": heads.by_layer(),
        "modality_null": analysis.modality_null(cache, inputs.modality, shuffles=20),
        "logit_lens": analysis.logit_lens(cache, positions=-1),
        "direct_attribution": analysis.direct_attribution(cache, (answers[0], answers[1])),
        "direct_attribution, by neuron": analysis.direct_attribution(cache, (answers[0], answers[1]), by="neuron"),
        "direct_attribution, by source": analysis.direct_attribution(
            cache, (answers[0], answers[1]), inputs.modality, by="source"
        ),
        "attention_from": analysis.attention_from(cache),
        "sinks": analysis.sinks(cache, inputs, times=1.2, min_queries=4, heads=0.3),
        "sink_share": analysis.sink_share(cache, inputs, sinks=[0, 30]),
        "spatial_entropy": analysis.spatial_entropy(cache, inputs),
        "attention_rollout": rollout,
        "attention_rollout, by layer": analysis.attention_rollout(cache, rows=-1, per_layer=True),
        "attention_flow": analysis.attention_flow(cache, groups="modality", modality=inputs.modality),
        "gradient_rollout": relevance,
        "received_attention": analysis.received_attention(cache, modality=inputs.modality),
        "attention_matrix": analysis.attention_matrix(cache, layer=1),
        "agreement": analysis.agreement({"rollout": rollout, "gradient rollout": relevance}),
        "deletion_curve": curve,
        "activation_patching": analysis.activation_patching(
            lens, inputs, flipped, (answers[0], answers[1]), by="head", activation="z", layers=(2, 3)
        ),
        "attribution_patching": analysis.attribution_patching(
            lens, inputs, flipped, (answers[0], answers[1]), by="head", activation="z", layers=(2, 3), verify=2
        ),
        "causal_tracing": analysis.causal_tracing(
            lens, inputs, (answers[0], answers[1]), draws=2, layers=(2, 3), progress=False
        ),
        "path_patching": analysis.path_patching(
            lens, inputs, flipped, (answers[0], answers[1]), receiver="v", heads=[(2, 0), (3, 1)], progress=False
        ),
        "path_patching, to the logits": analysis.path_patching(
            lens, inputs, flipped, (answers[0], answers[1]), layers=(2, 3), progress=False
        ),
        "circuit_faithfulness": analysis.circuit_faithfulness(
            lens, inputs, (answers[0], answers[1]), [(1, 0), (2, 1), (2, 3)]
        ),
        "modality_ablation": analysis.modality_ablation(lens, examples, "image"),
        "grounding": analysis.grounding(lens, examples, "image"),
        "modality_interaction": analysis.modality_interaction(lens, examples, "image"),
        "information_flow": analysis.information_flow(lens, examples, window=2, draws=2, progress=False),
        "information_flow, by region": analysis.information_flow(
            lens, examples, paths={name: (cell, "last") for name, cell in cells.items()}, draws=1, progress=False
        ),
        "region_attribution": analysis.region_attribution(lens, inputs, answers[0], (2, 2)),
        "region_attribution, words": analysis.region_attribution(lens, inputs, answers[0], ["color?", "single word"]),
        "region_attribution, masks": analysis.region_attribution(
            lens, inputs, answers[0], {"left": (0, 0, 24, 48), "top": (0, 0, 48, 24)}, method="shapley", samples=3
        ),
        "neuron_ablation": analysis.neuron_ablation(lens, examples, [(1, 3), (2, 5)], draws=2),
        "neuron_activity": activity,
        "domain_neurons": analysis.domain_neurons(activity, modality="image", share=0.1),
        "activations": analysis.activations(cache, inputs.modality, pool="image"),
        "probe": probe_of_colors(lens, seed),
        "compare": analysis.compare(heads, heads),
        **group_results(heads, analysis.logit_lens(cache), curve),
    }


def probe_of_colors(lens: lensplug.MultimodalLens, seed: int) -> analysis.Probe:
    """Whether heads say the color of four pictures at the last position."""
    colors = COLORS * 2
    scenes = [draw_scene(random.Random(seed + index), size=(48, 48), color=color) for index, color in enumerate(colors)]
    inputs = lens.prepare([QUESTION] * len(colors), images=[[scene.image] for scene in scenes])
    _, cache = lens.run_with_cache(inputs, names_filter="z", query_positions=[], logit_positions=[-1])
    collected = analysis.activations(cache, inputs.modality, hook="z", layers=(2, 3))
    return analysis.probe(collected, colors, folds=2, shuffles=2)
