"""Both engines on the same model: the same hooks, activations, gradients and analyses, padded batches too.

And the traps of a bridge, through the lens: what it shows of the embedding, of logits, of its Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache as once
from typing import Any

import pytest
import torch
from support.audio_llamas import audio_llama, sounds
from support.built import ENGINES, HOOKED, ONLY_HOOKED
from support.models import (
    QUESTION,
    largest_difference,
    llava_onevision,
    reference_logits,
    scene,
    text_model,
    text_tokens,
)

import lensplug
from lensplug import LensplugError, analysis
from lensplug.analysis.interventions.ablation_run import AblatedModality

FAMILIES = ["image", "sound"]
both_engines = pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)


@once
def model_of(family):
    return llava_onevision() if family == "image" else audio_llama("wav2vec2")


@once
def wrapped(family, engine, **options):
    return lensplug.wrap(*model_of(family), engine=engine, **options)


@once
def batch_of(family):
    """Three prompts of different lengths, padded at the left."""
    lens = wrapped(family, "bridge")
    if family == "image":
        questions = [QUESTION, "What is the shape? " + QUESTION, QUESTION]
        return lens.prepare(questions, images=[[scene(48, 48, 1)], [scene(80, 64, 2)], []])
    first, second = sounds(0.7, 1.3)
    questions = ["How does the speaker sound?", "How does the speaker sound? Happy or sad?", "How?"]
    return lens.prepare(questions, audio=[[(first, 16000)], [(second, 16000)], []])


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def batch(family):
    return batch_of(family)


@pytest.fixture
def pair(family):
    """The bridge, and the HookedTransformer that it must equal."""
    return wrapped(family, "bridge"), wrapped(family, "hooked_transformer")


def close(ours, theirs, *, name="", atol=1e-4):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
    scale = max(1.0, float(theirs[theirs.isfinite()].abs().max())) if theirs.is_floating_point() else 1.0
    torch.testing.assert_close(ours, theirs, atol=atol * scale, rtol=0, msg=lambda text: f"{name}: {text}")


def attended(name, value, mask):
    """Rows of padding are not compared: nobody reads them."""
    if value.ndim > 2 and value.shape[:2] == mask.shape:
        return value[mask.bool()]
    return value.transpose(1, 2)[mask.bool()] if value.ndim == 4 and value.shape[2] == mask.shape[1] else value


@both_engines
def test_the_same_hooks_and_activations(pair, batch):
    (logits, ours), (expected, theirs) = (lens.run_with_cache(batch) for lens in pair)
    close(attended("", logits, batch.attention_mask), attended("", expected, batch.attention_mask), name="logits")
    assert list(ours) == list(theirs)
    for name in theirs:
        if "rot_" in name:
            continue  # the bridge counts positions as Hugging Face does: only differences of positions are the same
        close(*(attended(name, one[name], batch.attention_mask) for one in (ours, theirs)), name=name)


@both_engines
def test_the_same_rows_and_reductions(pair, batch):
    options = {"query_positions": [-1, -4], "residual_positions": [-2], "logit_positions": [-1, -3]}
    kept = {"needs": [], "keep": ["rollout", "modality_mass", "head_mean"], "logit_positions": [-1]}
    for chosen in (options, kept):
        (logits, ours), (expected, theirs) = (lens.run_with_cache(batch, **chosen) for lens in pair)
        close(logits, expected, name="logits")
        assert list(ours) == list(theirs)
        for name in theirs:
            if "rot_" not in name:
                close(*(attended(name, one[name], batch.attention_mask) for one in (ours, theirs)), name=name)


@both_engines
def test_the_same_gradients(pair, batch):
    for options in ({}, {"keep": ["cam", "cam_negative"]}, {"names_filter": lambda n: n.endswith(GRADIENTS)}):
        (_, ours, our_grads), (_, theirs, their_grads) = (
            lens.run_with_gradients(batch, target=5, **options) for lens in pair
        )
        assert list(ours) == list(theirs) and list(our_grads) == list(their_grads)
        for name in theirs:
            close(*(attended(name, one[name], batch.attention_mask) for one in (ours, theirs)), name=name)
        for name in their_grads:
            close(*(attended(name, one[name], batch.attention_mask) for one in (our_grads, their_grads)), name=name)
            assert bool(our_grads[name].any()) or "blocks.2" in name or "blocks.5" in name, name


GRADIENTS = ("hook_embed", "hook_resid_mid", "hook_q", "hook_z", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post")
"""Not of ln1: HookedTransformer computes that once each for queries, keys and values, and shows one at a time."""


ANALYSES: dict[str, Callable[[Any, Any], Any]] = {
    "head_specialization": lambda cache, inputs: analysis.head_specialization(cache, inputs.modality),
    "attention_from": lambda cache, inputs: analysis.attention_from(cache, queries=-1),
    "attention_matrix": lambda cache, inputs: analysis.attention_matrix(cache, layer=1),
    "received_attention": lambda cache, inputs: analysis.received_attention(cache, layer=1, head=2),
    "logit_lens": lambda cache, inputs: analysis.logit_lens(cache, positions=[-1, -3], target=7),
    "logit_lens raw": lambda cache, inputs: analysis.logit_lens(cache, positions=-2, target=7, final_norm=False),
    "rollout": lambda cache, inputs: analysis.attention_rollout(cache, rows=-1, per_layer=True),
    "rollout by value": lambda cache, inputs: analysis.attention_rollout(
        cache, rows=-1, head_fusion="value_weighted", residual="measured"
    ),
    "flow": lambda cache, inputs: analysis.attention_flow(cache, groups="modality", modality=inputs.modality),
}


@both_engines
@pytest.mark.parametrize("name", ANALYSES)
def test_the_same_results(pair, batch, name):
    ours, theirs = (ANALYSES[name](lens.run_with_cache(batch)[1], batch) for lens in pair)
    compared = 0
    for field in fields(theirs):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(other, torch.Tensor) and other.is_floating_point():
            close(one.nan_to_num(), other.nan_to_num(), name=field.name)
            compared += 1
        elif isinstance(other, torch.Tensor):
            assert torch.equal(one, other), field.name
    assert compared > 0


@both_engines
def test_the_same_gradient_rollout_and_deletion_curve(pair, family):
    prompt = "How does the speaker sound?" if family == "sound" else QUESTION
    media = {"audio": [(sounds(0.7)[0], 16000)]} if family == "sound" else {"images": [scene(48, 48)]}
    results = []
    for lens in pair:
        inputs = lens.prepare(prompt, **media)
        _, cache, grads = lens.run_with_gradients(inputs, target=5)
        rollout = analysis.gradient_rollout(cache, grads, rows=-1)
        curve = analysis.deletion_curve(lens, inputs, rollout.relevance[:, 0], target=5, steps=3, draws=2)
        results.append((rollout.relevance, torch.tensor(curve.to_dataframe().select_dtypes("float").to_numpy())))
    for one, other in zip(*results, strict=True):
        close(one, other)


@both_engines
def test_the_same_answers_and_ablations(pair, family, batch):
    ours, theirs = (lens.generate(batch, max_new_tokens=5) for lens in pair)
    assert torch.equal(ours.tokens, theirs.tokens) and len(ours.tokens.unique()) > 2
    kind: AblatedModality
    media: dict[str, Any]
    if family == "sound":
        question, kind, media = "How does the speaker sound?", "audio", {"audio": [(sounds(0.7)[0], 16000)]}
    else:
        question, kind, media = QUESTION, "image", {"images": [scene(48, 48)]}
    words = [word for word in ("Happy", "Sad", "Red", "Green", "Blue") if word in pair[0].tokenizer.get_vocab()]
    examples = [analysis.Example(question, words[0], **media), analysis.Example(question, words[1], **media)]
    for method in ("remove", "zero"):
        ours, theirs = (
            analysis.modality_ablation(lens, examples, kind, method, classes=words).to_dataframe() for lens in pair
        )
        assert list(ours) == list(theirs)
        numbers = [torch.tensor(frame.select_dtypes("float").to_numpy()) for frame in (ours, theirs)]
        close(*numbers)
        assert ours.select_dtypes("object").equals(theirs.select_dtypes("object"))


@both_engines
def test_the_same_with_processed_weights(family, batch):
    lenses = [wrapped(family, engine, process_weights=True) for engine in ("bridge", "hooked_transformer")]
    (logits, ours), (expected, theirs) = (lens.run_with_cache(batch) for lens in lenses)
    close(attended("", logits, batch.attention_mask), attended("", expected, batch.attention_mask), name="logits")
    assert list(ours) == list(theirs)
    for name in theirs:
        if "rot_" not in name and "unembed.hook_in" not in name:
            close(*(attended(name, one[name], batch.attention_mask) for one in (ours, theirs)), name=name)


@both_engines
def test_positions_hidden_from_all_others(pair, batch):
    hidden = torch.zeros_like(batch.tokens, dtype=torch.bool)
    hidden[:, -9:-5] = True
    rows = torch.full((3, 2), batch.tokens.shape[1] - 1) - torch.tensor([0, 2])
    ours, theirs = (lens.logits_at(batch, rows, hidden=hidden) for lens in pair)
    close(ours, theirs)
    assert largest_difference(pair[0].logits_at(batch, rows), ours) > 0.01


@pytest.mark.parametrize("engine", ENGINES)
def test_the_lens_agrees_with_hugging_face(family, engine, batch):
    lens = wrapped(family, engine)
    assert lens.engine == engine
    report = lens.check(batch)
    assert report.agrees and report.max_logit_difference < 1e-4 and report.engine == engine
    reference = reference_logits(lens.hf_model, batch.model_inputs)
    with torch.no_grad():
        assert largest_difference(lens.model(batch), reference, batch.attention_mask) < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_decompositions_sum_to_the_residual_and_the_logit(family, engine, batch):
    """At the positions of image and sound too, and without folding."""
    logits, cache = wrapped(family, engine).run_with_cache(batch)
    real, last = batch.attention_mask.bool(), cache["resid_post", -1]
    kind = "image" if family == "image" else "audio"
    assert bool(batch.modality.mask(kind).any())
    for parts in (
        cache.decompose_resid(),
        cache.get_full_resid_decomposition(expand_neurons=False),
        cache.stack_head_results(incl_remainder=True),
    ):
        close(parts.sum(0)[real], last[real])
    close(cache.accumulated_resid()[-1][real], last[real])
    attributed = cache.logit_attrs(cache.decompose_resid(), tokens=5).sum(0)
    close(attributed[real], logits[..., 5][real])
    assert float(logits[..., 5][real].abs().max()) > 0.5


@pytest.mark.parametrize("engine", ENGINES)
def test_edits_act_and_hooks_are_told_their_names(engine, batch):
    lens, told = wrapped("image", engine), []
    inputs = batch_of("image")
    before = lens.model(inputs)

    def no_image(pattern, hook):
        told.append(hook.name)
        return pattern.masked_fill(inputs.modality.mask("image")[:, None, None], 0.0)

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(6)]
    edited = lens.run_with_hooks(inputs, fwd_hooks=[(name, no_image) for name in names])
    assert told == names and largest_difference(edited, before) > 0.1
    told.clear()
    lens.run_with_hooks(inputs, fwd_hooks=[(lambda name: name.endswith("hook_pattern"), no_image)])
    assert told == names
    assert torch.equal(lens.model(inputs), before)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.attn.hook_patern", r"is no hook of this model. Did you mean 'blocks.0.attn.hook_pattern'"),
        ("blocks.0.attn.hook_result", r"fires only after lens.model.set_use_attn_result\(True\)"),
        ("blocks.0.hook_q_input", r"fires only after lens.model.set_use_split_qkv_input\(True\)"),
    ],
)
def test_misspelt_and_silent_hooks_are_refused(engine, name, message):
    lens, inputs = wrapped("image", engine), batch_of("image")
    for run in (
        lambda: lens.run_with_cache(inputs, names_filter=name),
        lambda: lens.run_with_hooks(inputs, fwd_hooks=[(name, print)]),
        lambda: lens.run_with_gradients(inputs, target=5, names_filter=[name]),
    ):
        with pytest.raises(LensplugError, match=message):
            run()


def overflowing():
    """Queries and keys whose scores leave half precision: 24 x 24 x 128 = 73,728 > 65,504."""
    hf = text_model("qwen2-no-gqa", hidden_size=512, head_dim=128)
    with torch.no_grad():
        for layer in hf.get_decoder().layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight *= 0.02
                projection.bias.fill_(24.0)
    return hf.half()


def test_scores_that_overflow_half_precision_are_noticed_in_a_bridge():
    hf = overflowing()
    with pytest.raises(LensplugError, match=r"[1-9]\d* logits not finite"):
        lensplug.wrap(hf, engine="bridge")
    lens = lensplug.wrap(hf, engine="bridge", check=False)
    inputs = lens.encode({"input_ids": text_tokens(24)})
    with pytest.raises(LensplugError, match="attention scores of a float16 model overflowed"):
        lens.run_with_cache(inputs)
    _, cache = lens.model.run_with_cache(inputs)
    with pytest.raises(LensplugError, match="holds NaN"):
        analysis.attention_rollout(cache)
    logits, cache = lens.run_with_cache(inputs, query_positions=[-1])
    assert logits is not None and bool(logits.isfinite().all())
    assert analysis.attention_from(cache, queries=-1).values.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision(engine, dtype):
    hf = text_model("llama").to(dtype)
    lens = lensplug.wrap(hf, engine=engine)
    inputs = lens.encode({"input_ids": text_tokens(24, 2)})
    assert lens.check(inputs).agrees
    _, cache = lens.run_with_cache(inputs)
    assert cache["resid_post", 1].dtype == dtype and cache["blocks.0.ln1.hook_scale"].dtype == torch.float32
    assert lens.run_with_cache(inputs, query_positions=[-1])[1]["pattern", 0].dtype == torch.float32


@pytest.mark.parametrize(("name", "local"), [("mistral-window", [0, 1, 2]), ("qwen2-window-some-layers", [1, 2])])
def test_windows_are_told_to_the_analyses(name, local):
    """`head_specialization` reads from the configuration what a layer lets a query see: its chance."""
    lens = lensplug.wrap(text_model(name), engine="bridge")
    inputs = lens.encode({"input_ids": text_tokens(24)})
    _, cache = lens.run_with_cache(inputs)
    for layer in range(3):
        seen = cache["pattern", layer][0, 0, -1] > 0
        assert int(seen.sum()) == (6 if layer in local else 24)
    assert [kind == "local" for kind in lens.model.cfg.attn_types] == [layer in local for layer in range(3)]
    assert lens.model.cfg.use_local_attn and lens.model.cfg.window_size == 6


def test_auto_takes_the_bridge_where_hooked_transformer_does_not_fit():
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    hf = text_model("Llama", rope_parameters=rope)
    lens = lensplug.wrap(hf)
    assert lens.engine == "bridge"
    tokens = text_tokens(40, 2)
    assert lens.check(lens.encode({"input_ids": tokens})).max_logit_difference < 1e-4
    if HOOKED:
        with pytest.raises(LensplugError, match="not known to compute: rope_parameters"):
            lensplug.wrap(hf, engine="hooked_transformer")


def of_no_usual_form():
    """A model that no table knows, of which a layer halves the stream: parts do not add up to it."""
    hf = text_model("llama")
    hf.config.model_type = "gemma9"
    kind: Any = type(hf.model.layers[1])

    class Halving(kind):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) * 0.5

    hf.model.layers[1].__class__ = Halving
    return hf


def test_what_no_engine_computes_is_refused_by_what_failed_in_the_proof():
    with pytest.raises(LensplugError, match="its core, gemma9, failed the proof on load .* at layer 1"):
        lensplug.wrap(of_no_usual_form())


@pytest.mark.skipif(HOOKED, reason="there is a HookedTransformer")
def test_without_hooked_transformer_it_is_not_advised():
    hf = of_no_usual_form()
    with pytest.raises(LensplugError, match="failed the proof on load") as refused:
        lensplug.wrap(hf)
    assert "HookedTransformer" not in str(refused.value) and "engine" not in str(refused.value)
    with pytest.raises(LensplugError, match="has no HookedTransformer"):
        lensplug.wrap(hf, engine="hooked_transformer")


@pytest.mark.skipif(HOOKED, reason="there is a HookedTransformer")
@pytest.mark.parametrize("name", ["ConfigFix", "EmbeddingInput", "GatedMLPInPlace"])
def test_patches_of_hooked_transformer_say_what_a_bridges_are_called(name):
    with pytest.raises(ImportError, match=f"{name}.* are for one .*For a TransformerBridge.*BridgeEmbeddingInput"):
        getattr(lensplug.patches, name)
