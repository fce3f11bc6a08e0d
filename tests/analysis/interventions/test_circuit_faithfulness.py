"""Faithfulness of circuits against plain hooks, and where one head is known to carry everything."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from support.built import ENGINES
from support.models import TEXT_CORES, randomise, text_config

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.positions.tokens import single_token
from lensplug.tiny.scenes import draw_scene

QUESTION = "What is the color? Answer single word."
PAIR = ("Red", "Blue")
HEADS = [(1, 0), (2, 1), (-1, 3)]


@pytest.fixture(scope="module", params=ENGINES)
def lens(request):
    made = lensplug.tiny.llava_onevision()
    return lensplug.wrap(made.hf_model, made.processor, engine=request.param, check=False)


@pytest.fixture(scope="module")
def inputs(lens):
    pictures = [draw_scene(random.Random(3), size=(48, 48), color=color).image for color in ("red", "blue")]
    return lens.prepare([QUESTION] * 2, images=[[picture] for picture in pictures])


def every_head(lens):
    return [(layer, head) for layer in range(lens.model.cfg.n_layers) for head in range(lens.model.cfg.n_heads)]


def by_plain_hooks(lens, inputs, ablated, means=None):
    """Red minus Blue at the last position, with z written by hooks of TransformerLens."""

    def write(z, hook, head):
        z[:, :, head] = 0 if means is None else means[hook.name][head]
        return z

    hooks = [(f"blocks.{layer}.attn.hook_z", partial(write, head=head)) for layer, head in ablated]
    with torch.no_grad():
        logits = lens.model.run_with_hooks(inputs, fwd_hooks=hooks)
    red, blue = (single_token(word, lens.tokenizer) for word in PAIR)
    return (logits[:, -1, red] - logits[:, -1, blue]).float()


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_equals_plain_hooks(lens, inputs, method):
    means = None
    if method == "mean":
        _, cache = lens.run_with_cache(inputs, names_filter="z")
        means = analysis.mean_activations(analysis.activations(cache, inputs, hook="z", pool=("text", "media")))
    found = analysis.circuit_faithfulness(lens, inputs, PAIR, HEADS, method=method, values=means)
    every, circuit = every_head(lens), [(layer % lens.model.cfg.n_layers, head) for layer, head in HEADS]
    measured = {
        "all_heads": [],
        "no_heads": every,
        "circuit": [pair for pair in every if pair not in circuit],
        "complement": circuit,
    }
    expected = {name: by_plain_hooks(lens, inputs, ablated, means) for name, ablated in measured.items()}
    for name, values in expected.items():
        torch.testing.assert_close(getattr(found, name), values, atol=2e-4, rtol=1e-4, msg=name)
    effect = expected["all_heads"] - expected["no_heads"]
    assert float(effect.abs().min()) > 0.1
    torch.testing.assert_close(
        found.faithfulness, (expected["circuit"] - expected["no_heads"]) / effect, atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        found.completeness, (expected["complement"] - expected["no_heads"]) / effect, atol=1e-3, rtol=1e-3
    )
    assert found.heads == tuple(sorted(circuit)) and found.n_heads == len(every)


def test_all_heads_are_1_and_none_0(lens, inputs):
    whole = analysis.circuit_faithfulness(lens, inputs, PAIR, every_head(lens))
    nothing = analysis.circuit_faithfulness(lens, inputs, PAIR, [])
    assert whole.faithfulness.tolist() == nothing.completeness.tolist() == [1, 1]
    assert whole.completeness.tolist() == nothing.faithfulness.tolist() == [0, 0]


def test_a_function_of_the_logits_is_a_target_too(lens, inputs):
    red, blue = (single_token(word, lens.tokenizer) for word in PAIR)
    by_function = analysis.circuit_faithfulness(
        lens, inputs, lambda logits: logits[:, -1, red] - logits[:, -1, blue], HEADS
    )
    by_words = analysis.circuit_faithfulness(lens, inputs, PAIR, HEADS)
    torch.testing.assert_close(by_function.faithfulness, by_words.faithfulness, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_head_that_carries_everything(engine):
    """Every other head writes nothing: the columns of its W_O are zero."""
    kind, changes = TEXT_CORES["llama"]
    import transformers

    model = randomise(getattr(transformers, f"{kind}ForCausalLM")(text_config(kind, **changes)))
    carrier, width = (1, 2), model.config.hidden_size // model.config.num_attention_heads
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            kept = torch.zeros(model.config.hidden_size)
            if layer == carrier[0]:
                kept[carrier[1] * width : (carrier[1] + 1) * width] = 1
            block.self_attn.o_proj.weight.mul_(kept)
    lens = lensplug.wrap(model, None, engine=engine, check=False)
    inputs = lens.encode({"input_ids": torch.tensor([[5, 9, 30, 7, 12]])})
    measure = partial(analysis.circuit_faithfulness, lens, inputs, (3, 8))
    alone, others = measure([carrier]), measure([pair for pair in every_head(lens) if pair != carrier])
    assert float((alone.all_heads - alone.no_heads).abs()) > 0.1
    assert float(alone.faithfulness) == pytest.approx(1, abs=1e-4) == float(others.completeness)
    assert float(alone.completeness) == pytest.approx(0, abs=1e-4) == float(others.faithfulness)
    assert float(measure([(0, 0)]).faithfulness) == pytest.approx(0, abs=1e-4)


def test_no_effect_of_heads_has_no_share(lens, inputs):
    found = analysis.circuit_faithfulness(lens, inputs, ("Red", "Red"), HEADS)
    assert bool(found.faithfulness.isnan().all()) and bool(found.completeness.isnan().all())


def test_table_combination_and_figure(lens, inputs):
    found = analysis.circuit_faithfulness(lens, inputs, PAIR, HEADS)
    table = found.to_dataframe()
    assert table["faithfulness"].tolist() == found.faithfulness.tolist() and len(table) == 2
    both = analysis.CircuitFaithfulness.combine([found, found])
    assert both.circuit.tolist() == found.circuit.tolist() * 2
    bars = views.circuit_faithfulness(found).data
    assert [list(bar.y) for bar in bars] == [found.faithfulness.tolist(), found.completeness.tolist()]
    with pytest.raises(LensplugError):
        analysis.CircuitFaithfulness.combine([found, analysis.circuit_faithfulness(lens, inputs, PAIR, [(0, 0)])])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": [(9, 0)]}, "layers 0 to"),
        ({"heads": [(0, 99)]}, "heads 0 to"),
        ({"heads": [0, 1]}, "heads"),
        ({"method": "mean"}, "needs values="),
        ({"values": {}}, "needs no values"),
        ({"method": "mean", "values": {}}, "values have no blocks.0.attn.hook_z"),
    ],
)
def test_refusals(lens, inputs, options, message):
    with pytest.raises(LensplugError, match=message):
        analysis.circuit_faithfulness(lens, inputs, PAIR, **{"heads": HEADS, **options})
    assert by_plain_hooks(lens, inputs, []).isfinite().all()
