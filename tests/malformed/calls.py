"""A good call of every public function and method, and bad values for each of its arguments.

Run as a program, since under pytest another tool checks the annotations of the package, whose errors would stand where
the package's own must:

    PYTHONPATH=tests python -m malformed.calls     # prints how many, and every call that ended in a raw traceback
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lensplug
from lensplug import LensplugError, analysis, views


@dataclass
class Call:
    """A call that works."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    free: tuple[str, ...] = ()
    """Arguments that take anything: what is printed, paths that are written."""


def good_calls() -> list[Call]:
    from support import image_families

    from lensplug.tiny.scenes import draw_scene
    from lensplug.tiny.voices import make_voice

    lens, hears = lensplug.tiny.llava_onevision(), lensplug.tiny.audio_llama()
    picture, other = (draw_scene(random.Random(seed), size=(48, 48)).image for seed in (3, 5))
    question = "What is the color? Answer single word."
    inputs, second = (lens.prepare(question, images=[one]) for one in (picture, other))
    resampling = image_families.lens("idefics2")
    resampled = resampling.prepare("What is this ?", images=[picture])
    through = resampling.resampler_attention(resampled, stripes=6)
    voice = make_voice(random.Random(4), emotion="happy", words="sad", transcript=True)
    heard = hears.prepare(voice.prompt("sound"), audio=[voice.audio])
    _, cache = lens.run_with_cache(inputs)
    _, heard_cache = hears.run_with_cache(heard)
    _, gradient_cache, grads = lens.run_with_gradients(inputs, target="Red")
    rollout = analysis.attention_rollout(cache, rows=-1)
    heads = analysis.head_specialization(cache, inputs.modality)
    said = analysis.logit_lens(cache, positions=-1)
    everywhere = analysis.logit_lens(cache, positions=inputs.modality.image_positions())
    looked = analysis.attention_from(cache)
    received = analysis.received_attention(cache, modality=inputs.modality)
    matrix = analysis.attention_matrix(cache, layer=1)
    found = analysis.sinks(cache, inputs, times=1.2, min_queries=4)
    shared = analysis.sink_share(cache, inputs, sinks=[0, 30])
    entropies = analysis.spatial_entropy(cache, inputs)
    flow = analysis.attention_flow(cache, groups="modality", modality=inputs.modality)
    written = analysis.direct_attribution(cache, ("Red", "Blue"), inputs.modality, by="source")
    three = torch.arange(inputs.shape[1]) * 3 // inputs.shape[1]
    patched = analysis.activation_patching(lens, inputs, second, ("Red", "Blue"), layers=(0, 0), groups=three)
    by_path = analysis.path_patching(lens, inputs, second, ("Red", "Blue"), layers=(0, 0), progress=False)
    circuit = analysis.circuit_faithfulness(lens, inputs, ("Red", "Blue"), [(1, 0)])
    examples = [analysis.Example(question, "Red", images=[picture]), analysis.Example(question, "Blue", images=[other])]
    ablated = analysis.modality_ablation(lens, examples, "image")
    deactivated = analysis.neuron_ablation(lens, examples, [(1, 3)], draws=1)
    curve = analysis.deletion_curve(lens, inputs, rollout.values[:, 0], "Red", steps=2, draws=1)
    by_region = analysis.region_attribution(lens, inputs, "Red", (1, 2))
    flowing = analysis.information_flow(lens, inputs, "Red", draws=1, progress=False)
    agreed = analysis.agreement({"one": rollout, "two": looked.values[0, 0, 0, 0]})
    compared = analysis.compare(heads, heads)
    grid, timeline = inputs.modality.image_grid(), heard.modality.audio_timeline()
    assert grid is not None and timeline is not None
    per_token = torch.rand(len(grid))
    mask = inputs.modality.mask("image")
    patterns = [cache["pattern", layer] for layer in range(2)]
    groups = lensplug.views.group_positions(inputs.modality)
    map_parts = {
        "tokens": inputs.tokens, "attention_mask": inputs.attention_mask,
        "placeholder_ids": {"image": lens.core.placeholder_ids["image"]},
    }  # fmt: skip
    collected = analysis.activations(cache, inputs)
    several = analysis.Activations.combine([collected] * 4)
    probed = analysis.probe(several, [0, 1, 0, 1], folds=2, shuffles=1)
    waveform, rate = np.zeros(16000, dtype=np.float32), 16000

    calls = [
        Call("lens.prepare", lens.prepare, {
            "text": question, "images": [picture], "videos": None, "audio": None, "chat_template": True}),
        Call("lens.prepare(audio)", hears.prepare, {"text": voice.prompt("sound"), "audio": [voice.audio]}),
        Call("lens.encode", lens.encode, {"processor_outputs": inputs.model_inputs, "images": [picture]}),
        Call("lens.run_with_cache", lens.run_with_cache, {
            "inputs": inputs, "names_filter": None, "needs": [analysis.head_specialization], "keep": "rollout",
            "query_positions": [-1], "residual_positions": [-1], "logit_positions": [-1]}),
        Call("lens.estimate", lens.estimate, {
            "inputs": inputs, "needs": [analysis.logit_lens], "query_positions": [-1], "keep": "rollout"}),
        Call("lens.run_with_gradients", lens.run_with_gradients, {
            "inputs": inputs, "target": "Red", "position": -1, "names_filter": None, "keep": "cam"}),
        Call("lens.without", lens.without, {"inputs": inputs, "positions": mask}),
        Call("lens.locate", lens.locate, {
            "inputs": inputs, "kind": "image", "media_index": 0, "example": 0, "stripes": 2, "batch": 4,
            "progress": print,
        }),
        Call("lens.resampler_attention", resampling.resampler_attention, {
            "inputs": resampled, "kind": "image", "media_index": 0, "example": 0, "stripes": 2, "batch": 4,
            "progress": print,
        }),
        Call("ResamplerAttention.over_states", through.over_states, {
            "values": torch.ones(4), "layer": "mean"}),
        Call("lens.with_media", lens.with_media, {
            "inputs": inputs, "images": [[other]], "videos": None, "audio": None}),
        Call("lens.logits_at", lens.logits_at, {
            "inputs": inputs, "rows": torch.tensor([[5]]), "attention_mask": None, "hidden": mask}),
        Call("lens.run_with_hooks", lens.run_with_hooks, {
            "inputs": inputs, "fwd_hooks": [("blocks.0.hook_resid_pre", lambda value, hook: value)]}),
        Call("lens.generate", lens.generate, {
            "inputs": inputs, "max_new_tokens": 2, "do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 5,
            "seed": 0, "stop_strings": ["."]}),
        Call("lens.check", lens.check, {"inputs": inputs}),
        Call("lensplug.wrap", lensplug.wrap, {
            "hf_model": lens.hf_model, "processor": lens.processor, "engine": "auto", "process_weights": False,
            "check": False}),
        Call("lensplug.load", lensplug.load, {
            "name": str(Path(lensplug.tiny.__file__).parent / "checkpoints" / "llava-onevision"), "device": "cpu",
            "dtype": "float32", "engine": "auto", "process_weights": False, "check": False}),
        Call("cache_from_attentions", lensplug.cache_from_attentions, {
            "attentions": patterns, "tokens": inputs.str_tokens, "attention_mask": inputs.attention_mask,
            "normalize": False, "attention_dir": "causal", "model_name": "a"}, free=("model_name",)),
        Call("join_pieces", lensplug.join_pieces, {"str_tokens": ["a", "b"], "word_ids": [0, 0]}),
        Call("group_positions", views.group_positions, {
            "modality": inputs.modality, "str_tokens": inputs.str_tokens, "example": 0, "blocks": 3, "stretches": 12,
            "text_run": 1, "join_newlines": False}),
        Call("head_specialization", analysis.head_specialization, {
            "cache": cache, "modality": inputs.modality, "query": -1, "sinks": [0], "exclude_sink": False}),
        Call("logit_lens", analysis.logit_lens, {
            "cache": cache, "positions": -1, "top_k": 3, "target": "Red", "final_norm": True, "attention_mask": None,
            "chunk_bytes": 2**20}),
        Call("direct_attribution", analysis.direct_attribution, {
            "cache": cache, "target": ("Red", "Blue"), "modality": inputs.modality, "by": "source", "position": -1,
            "sinks": "first", "attention_mask": None}),
        Call("attention_rollout", analysis.attention_rollout, {
            "cache": cache, "rows": -1, "residual": 0.5, "head_fusion": "mean", "heads": [0], "discard": 0.1,
            "exclude_first": False, "sinks": [0], "layers": (0, 1), "per_layer": False, "attention_mask": None}),
        Call("attention_flow", analysis.attention_flow, {
            "cache": cache, "row": -1, "residual": 0.5, "groups": "modality", "head_fusion": "mean", "heads": [0],
            "discard": 0.1, "exclude_first": False, "layers": (0, 1), "modality": inputs.modality,
            "attention_mask": None, "minutes": 5.0}),
        Call("gradient_rollout", analysis.gradient_rollout, {
            "cache": gradient_cache, "grads": grads, "rows": -1, "contributions": "positive", "normalize": False,
            "attention_mask": None}),
        Call("received_attention", analysis.received_attention, {
            "cache": cache, "layer": 0, "head": "mean", "scale": "row-max", "exclude_sink": False,
            "modality": inputs.modality, "str_tokens": None, "attention_mask": None}),
        Call("attention_from", analysis.attention_from, {
            "cache": cache, "queries": -1, "sinks": [0], "attention_mask": None}),
        Call("sinks", analysis.sinks, {
            "cache": cache, "modality": inputs, "rules": ["massive"], "ratio": 1000.0, "magnitude": 100.0, "tau": 20.0,
            "times": 20.0, "queries": 0.5, "heads": 0.5, "min_queries": 16, "min_layers": 1}),
        Call("sink_share", analysis.sink_share, {"cache": cache, "modality": inputs, "sinks": [0, 30], "query": -1}),
        Call("spatial_entropy", analysis.spatial_entropy, {
            "attention": cache, "modality": inputs, "query": -1, "media_index": 0, "view": "base", "margin": 0.0,
            "sinks": None}),
        Call("attention_matrix", analysis.attention_matrix, {
            "cache": cache, "layer": 1, "head": "mean", "groups": None, "str_tokens": None, "attention_mask": None}),
        Call("agreement", analysis.agreement, {
            "results": {"one": rollout, "two": looked.values[0, 0, 0, 0]}, "example": 0, "positions": mask[0]}),
        Call("compare", analysis.compare, {"result_a": heads, "result_b": heads, "names": ["a", "b"]}),
        Call("activation_patching", analysis.activation_patching, {
            "lens": lens, "clean": inputs, "corrupt": second, "target": ("Red", "Blue"), "activation": "resid_pre",
            "by": "position", "groups": three, "layers": (0, 0), "position": -1}),
        Call("attribution_patching", analysis.attribution_patching, {
            "lens": lens, "clean": inputs, "corrupt": second, "target": ("Red", "Blue"), "activation": "resid_pre",
            "by": "position", "groups": three, "layers": (0, 0), "position": -1, "steps": 2, "verify": 1,
            "progress": False}),
        Call("causal_tracing", analysis.causal_tracing, {
            "lens": lens, "inputs": inputs, "target": ("Red", "Blue"), "corruption": "noise", "medium": "image",
            "media_index": 0, "noise": 1.0, "draws": 1, "seed": 0, "restore": "resid_post", "groups": three,
            "layers": (0, 0), "position": -1, "batch": 2, "progress": False}),
        Call("path_patching", analysis.path_patching, {
            "lens": lens, "clean": inputs, "corrupt": second, "target": ("Red", "Blue"), "receiver": "v",
            "heads": [(1, 0)], "senders": "heads", "mlps": "computed", "by": "sender_and_position", "groups": three,
            "layers": (0, 0), "position": -1, "batch": 2, "progress": False}),
        Call("circuit_faithfulness", analysis.circuit_faithfulness, {
            "lens": lens, "inputs": inputs, "target": ("Red", "Blue"), "heads": [(1, 0)], "method": "zero",
            "values": None, "position": -1}),
        Call("deletion_curve", analysis.deletion_curve, {
            "lens": lens, "inputs": inputs, "relevance": rollout.values[:, 0], "target": "Red", "position": -1,
            "among": "media", "steps": 1, "draws": 1, "seed": 0, "batch_size": 4}),
        Call("modality_interaction", analysis.modality_interaction, {
            "lens": lens, "examples": examples[:1], "medium": "image", "batch_size": 2}),
        Call("information_flow", analysis.information_flow, {
            "lens": lens, "examples": inputs, "target": "Red", "paths": [("image", "last")], "window": 1, "layers": [1],
            "draws": 1, "seed": 0, "batch_size": 2, "progress": False}),
        Call("InformationFlow.mean", flowing.mean, {"confidence": 0.9, "replicates": 20, "seed": 0}),
        Call("views.information_flow", views.information_flow, {"result": flowing}),
        Call("grid_regions", lensplug.interventions.grid_regions, {"rows": 1, "columns": 2, "image": 0}),
        Call("region_attribution", analysis.region_attribution, {
            "lens": lens, "inputs": inputs, "target": "Red", "regions": (1, 2), "method": "shapley", "baseline": "grey",
            "at": "medium", "measure": "logit", "position": -1, "media_index": 0, "samples": 2, "seed": 0,
            "batch_size": 4}),
        Call("modality_ablation", analysis.modality_ablation, {
            "lens": lens, "examples": examples[:1], "modality": "image", "method": "remove", "classes": None,
            "batch_size": 2, "seed": 0}),
        Call("neuron_ablation", analysis.neuron_ablation, {
            "lens": lens, "examples": examples[:1], "neurons": [(1, 3), (2, 5)], "draws": 1, "value": 0.0,
            "where": "image", "batch_size": 2, "seed": 0}),
        Call("Example", analysis.Example, {"text": question, "answer": "Red", "images": [picture], "audio": ()}),
        Call("activations", analysis.activations, {
            "cache": cache, "modality": inputs.modality, "hook": "z", "position": -1, "pool": None, "layers": [0]}),
        Call("activations(pool)", analysis.activations, {
            "cache": cache, "modality": inputs, "hook": "resid_post", "pool": mask}),
        Call("probe", analysis.probe, {
            "activations": several, "labels": ["a", "b", "a", "b"], "method": "ridge", "folds": 2,
            "groups": [0, 1, 2, 3], "shuffles": 1, "regularisation": 1.0, "standardise": True, "seed": 0}),
        Call("heads.top", heads.top, {"modality": "image", "k": 3}),
        Call("heads.combine", type(heads).combine, {"results": [heads, heads]}),
        Call("said.by_position", everywhere.by_position, {"example": 0, "measure": "probability"}),
        Call("written.by_position", written.by_position, {"example": 0, "heads": [(0, 1)]}),
        Call("written.top", written.top, {"k": 3, "example": 0}),
        Call("looked.by_position", looked.by_position, {"example": 0, "query": 0, "head": "mean"}),
        Call("rollout.by_position", rollout.by_position, {"example": 0}),
        Call("flow.by_position", flow.by_position, {"example": 0, "normalized": False, "shared": False}),
        Call("received.by_position", received.by_position, {"example": 0}),
        Call("received.top", received.top, {"k": 3, "example": 0}),
        Call("received.of", received.of, {"modality": "text", "example": 0}),
        Call("received.table", received.table, {"k": 3}),
        Call("patched.by_position", patched.by_position, {"example": 0}),
        Call("patched.groups_of", patched.groups_of, {"example": 0}),
        Call("ablated.confusion", ablated.confusion, {"condition": "without"}),
        Call("ablated.transitions", ablated.transitions, {"condition": "without"}),
        Call("curve.combine", type(curve).combine, {"results": [curve]}),
        Call("compared.largest", compared.largest, {"k": 3, "number": None}),
        Call("grid.to_pixels", grid.to_pixels, {"values": per_token, "view": "all", "preserve_mass": False}),
        Call("grid.to_cells", grid.to_cells, {"values": per_token, "view": "base"}),
        Call("grid.cells", grid.cells, {"view": "base"}),
        Call("share.looking", shared.looking, {"modality": "image", "mass": 0.2, "share": 0.5}),
        Call("entropy.localising", entropies.localising, {"k": 3, "among": 10}),
        Call("entropy.selected", entropies.selected, {"among": 10}),
        Call("views.sinks", views.sinks, {"result": found, "example": 0, "inputs": inputs}),
        Call("views.sink_share", views.sink_share, {"result": shared, "modality": "image"}),
        Call("views.spatial_entropy", views.spatial_entropy, {"result": entropies, "k": 3}),
        Call("grid.overlap", grid.overlap, {"region": (1, 2, 30, 40), "view": "all"}),
        Call("timeline.to_seconds", timeline.to_seconds, {"values": torch.rand(len(timeline)), "bins": 20}),
        Call("modality.mask", inputs.modality.mask, {"modality": "image"}),
        Call("modality.image_grid", inputs.modality.image_grid, {"media_index": 0, "example": 0}),
        Call("modality.image_positions", inputs.modality.image_positions, {"media_index": 0, "example": 0}),
        Call("modality.audio_timeline", heard.modality.audio_timeline, {"media_index": 0, "example": 0}),
        Call("ModalityMap.build", lensplug.ModalityMap.build, map_parts),
        Call("groups.pool", groups.pool, {"pattern": patterns[0][0]}),
        Call("groups.sums", groups.sums, {"values": rollout.values[0, 0]}),
        Call("inputs.pictures", inputs.pictures, {"example": 0}),
        Call("views.head_specialization", views.head_specialization, {"result": heads, "modality": "image"}),
        Call("views.logit_lens", views.logit_lens, {"result": said, "inputs": inputs, "example": 0}),
        Call("views.attention_rollout", views.attention_rollout, {
            "result": rollout, "inputs": inputs, "row": -1, "example": 0, "str_tokens": None}),
        Call("views.attention_flow", views.attention_flow, {
            "result": flow, "inputs": inputs, "example": 0, "normalized": False}),
        Call("views.attention_by_layer", views.attention_by_layer, {
            "result": looked, "row": -1, "head": "mean", "example": 0, "inputs": inputs, "str_tokens": None,
            "groups": groups}),
        Call("views.attention_heads", views.attention_heads, {
            "cache": cache, "inputs": inputs, "layer": 0, "example": 0, "blocks": 3, "str_tokens": None}),
        Call("views.attention_matrix", views.attention_matrix, {"result": matrix, "example": 0}),
        Call("views.attention_over_signal", views.attention_over_signal, {
            "weights": np.random.rand(10), "signal": np.random.rand(400), "sampling_rate": 100, "channels": ["a"],
            "mask": None, "stretch": None, "title": "x"}, free=("title",)),
        Call("views.received_attention", views.received_attention, {
            "result": received, "inputs": inputs, "example": 0, "top": 5}),
        Call("views.colored_tokens", views.colored_tokens, {
            "values": rollout.values[0, 0], "inputs": inputs, "example": 0, "blocks": 3, "str_tokens": None}),
        Call("views.comparison", views.comparison, {
            "result": compared, "number": None, "names": ["a", "b"], "modality": "image", "example": 0}),
        Call("views.deletion_curve", views.deletion_curve, {"result": curve}),
        Call("views.region_attribution", views.region_attribution, {"result": by_region, "example": 0}),
        Call("views.image_overlay(regions)", views.image_overlay, {
            "values": by_region, "inputs": inputs, "image": picture, "media_index": 0, "example": 0, "view": None,
            "title": "a"}, free=("title",)),
        Call("RegionAttribution.top", by_region.top, {"k": 2, "example": 0}),
        Call("views.agreement", views.agreement, {"result": agreed}),
        Call("views.draw", lambda result: views.draw(result), {"result": heads}),
        Call("views.image_overlay", views.image_overlay, {
            "values": rollout, "inputs": inputs, "image": picture, "media_index": 0, "example": 0, "view": "all",
            "title": "x"}, free=("title",)),
        Call("views.image_overlay(through)", views.image_overlay, {
            "values": torch.rand(resampled.shape[1]), "inputs": resampled, "image": picture, "media_index": 0,
            "example": 0, "view": "all", "through": through, "title": "x"}, free=("title",)),
        Call("views.image_explorer", views.image_explorer, {
            "logit_lens": everywhere, "attention": looked, "inputs": inputs, "image": None, "media_index": 0,
            "example": 0}),
        Call("views.modality_ribbon", views.modality_ribbon, {"inputs": inputs, "example": 0}),
        Call("views.modality_ablation", views.modality_ablation, {"result": ablated}),
        Call("views.neuron_ablation", views.neuron_ablation, {"result": deactivated}),
        Call("views.direct_attribution", views.direct_attribution, {
            "result": written, "example": 0, "modality": "image"}),
        Call("views.activation_patching", views.activation_patching, {"result": patched, "example": 0, "head": None}),
        Call("views.path_patching", views.path_patching, {"result": by_path, "example": 0, "receiver": None}),
        Call("views.circuit_faithfulness", views.circuit_faithfulness, {"result": circuit}),
        Call("views.activations", views.activations, {"result": collected}),
        Call("views.probe", views.probe, {"result": probed}),
        Call("views.sound_overlay", views.sound_overlay, {
            "values": analysis.attention_rollout(heard_cache, rows=-1), "inputs": heard, "sound": None,
            "media_index": 0, "example": 0, "title": "x"}, free=("title",)),
        Call("views.sound_player", views.sound_player, {"inputs": heard, "media_index": 0, "example": 0}),
        Call("lens.prepare((waveform, rate))", hears.prepare, {
            "text": voice.prompt("sound"), "audio": [(waveform, rate)]}),
    ]  # fmt: skip
    return calls


@dataclass
class Outcome:
    call: str
    argument: str
    value: str
    kind: str
    """"refused", "raw" or "taken"."""
    says: str = ""


LONGEST = 20
"""Seconds after which a call has hung."""
BAD: dict[str, Any] = {
    "object": object(), "text": "nonsense", "empty text": "", "fraction": 1.9, "true": True, "none": None,
    "nan": float("nan"), "infinity": float("inf"), "huge": 10**9, "minus huge": -(10**9), "empty list": [],
    "dict": {"a": 1}, "class": int, "function": len, "list of texts": ["x", "y"], "list of none": [None],
    "empty tensor": torch.empty(0), "nan tensor": torch.full((1, 3), float("nan")), 
    "tensor of rank 5": torch.zeros(1, 1, 1, 1, 1),
    "complex tensor": torch.zeros(2, dtype=torch.complex64), "bytes": b"x",
}  # fmt: skip


def bad_values(call: Call, argument: str) -> dict[str, Any]:
    good = call.arguments[argument]
    values = dict(BAD)
    for other, value in call.arguments.items():  # a neighbour's value
        if other != argument and type(value) is not type(good) and value is not None:
            values[f"that of {other}"] = value
    if isinstance(good, torch.Tensor):
        values |= {
            "one longer": torch.cat([good, good[..., :1]], dim=-1), "one shorter": good[..., :-1],
            "another rank": good[None], "numpy": good.numpy(), "list": good.tolist(),
            "nan inside": good.float().index_fill(-1, torch.tensor([0]), float("nan")),
        }  # fmt: skip
    return {name: value for name, value in values.items() if value is not good and not _same(value, good)}


def _same(value: Any, good: Any) -> bool:
    return type(value) is type(good) and isinstance(good, str | int | float | bool | type(None)) and value == good


def too_long(*_: Any) -> None:
    raise TimeoutError(f"took more than {LONGEST} seconds")


def outcomes(calls: list[Call]) -> list[Outcome]:
    signal.signal(signal.SIGALRM, too_long)
    found = []
    for call in calls:
        call.function(**call.arguments)  # all work, before the first is spoilt
    for call in calls:
        for argument in call.arguments:
            if argument in call.free:
                continue
            for name, value in bad_values(call, argument).items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    signal.alarm(LONGEST)
                    try:
                        call.function(**{**call.arguments, argument: value})
                        found.append(Outcome(call.name, argument, name, "taken"))
                    except LensplugError as error:
                        found.append(Outcome(call.name, argument, name, "refused", str(error)))
                    except Exception as error:  # noqa: BLE001
                        found.append(
                            Outcome(call.name, argument, name, "raw", f"{type(error).__name__}: {error}"[:160])
                        )
    return found


NEVER_MEANT = (
    "object", "nan", "infinity", "dict", "class", "function", "bytes", "list of none", "complex tensor",
    "tensor of rank 5", "nan tensor", "empty tensor",
)  # fmt: skip
"""Values that mean nothing wherever they are given, but for `MEANT`."""
MEANT = {
    ("activation_patching", "target", "function"), ("causal_tracing", "target", "function"),
    ("path_patching", "target", "function"),
    ("circuit_faithfulness", "target", "function"), ("lens.run_with_gradients", "target", "function"),
    ("lens.with_media", "videos", "list of none"), ("lens.with_media", "audio", "list of none"),
    ("attention_flow", "minutes", "infinity"), ("lens.run_with_cache", "names_filter", "function"),
}  # fmt: skip


def nonsense(outcome: Outcome) -> bool:
    """Whether something was taken that means nothing; media of an `Example` are looked at when it is run."""
    late = outcome.call == "Example" and outcome.argument in ("images", "audio")
    known = late or (outcome.call, outcome.argument, outcome.value) in MEANT
    return outcome.kind == "taken" and outcome.value in NEVER_MEANT and not known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the calls, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    calls = good_calls()
    chosen = random.Random(given.seed).sample(calls, max(1, round(given.share * len(calls))))
    found = outcomes(chosen)
    counts = {kind: sum(one.kind == kind for one in found) for kind in ("refused", "taken", "raw")}
    print(f"{len(chosen)} functions, {len(found)} malformed calls (seed {given.seed}): {counts}")
    faults = [one for one in found if one.kind == "raw" or nonsense(one)]
    for one in faults:
        print(f"{one.kind}: {one.call}({one.argument}={one.value}) {one.says}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
