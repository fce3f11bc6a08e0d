"""Deactivated neurons against the Hugging Face model with the same ones zeroed, and a model in which one matters."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest
import torch
from support.built import ENGINES

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.analysis import Example, NeuronAblation
from lensplug.analysis.neurons.neuron_sets import chosen_neurons, random_neurons
from lensplug.tiny.scenes import draw_scene

QUESTION = "What is the color? Answer single word."
PHRASE = "What is the color? Answer in a phrase."
NEURONS = [(layer, neuron) for layer in (0, 1, 4) for neuron in range(layer, 100 + layer)]


def scene(color: str, size: tuple[int, int] = (48, 48)):
    return draw_scene(random.Random(1), size=size, color=color).image


EXAMPLES = [
    Example(QUESTION, "Red", images=[scene("red")]),
    Example(PHRASE, "Blue square Red", images=[scene("blue", (96, 48))]),
    Example(QUESTION, "Green", images=[scene("orange")]),
]


def wrapped(model, engine):
    return lensplug.wrap(model.hf_model, model.processor, engine=engine, check=False)


@pytest.fixture(scope="module", params=ENGINES)
def lens(request):
    return wrapped(lensplug.tiny.llava_onevision(), request.param)


class HuggingFace:
    """The whole model with the inputs of some down projections changed, on one padded batch."""

    def __init__(self, lens, examples):
        texts, images = [one.text for one in examples], [list(one.images) for one in examples]
        self.model = lens.hf_model
        self.inputs = lens.prepare(texts, images=images, answer=[one.answer for one in examples])
        of_prompts = lens.prepare(texts, images=images).model_inputs
        self.given = {
            **of_prompts, "input_ids": self.inputs.tokens, "attention_mask": self.inputs.attention_mask
        }  # fmt: skip
        self.answered = [row.nonzero()[:, 0] for row in self.inputs.modality.mask("generated")]

    def logits(self, edits) -> torch.Tensor:
        """Layer -> what becomes of the input of its down projection."""
        with torch.no_grad(), ExitStack() as stack:
            for layer, edit in edits.items():
                projection = self.model.get_decoder().layers[layer].mlp.down_proj
                handle = projection.register_forward_pre_hook(lambda module, args, edit=edit: (edit(args[0].clone()),))
                stack.callback(handle.remove)
            return self.model(**self.given).logits.float().log_softmax(dim=-1)

    def answers(self, edits):
        """The log-probability of each answer, and the tokens that the model would write in its place."""
        logits = self.logits(edits)
        scores, written = [], []
        for row, positions in enumerate(self.answered):
            scores.append(logits[row, positions - 1, self.inputs.tokens[row, positions]].sum())
            written.append(logits[row, positions - 1].argmax(dim=-1))
        return torch.stack(scores), written


def setting(pairs, values, where=None):
    """Edits that set these neurons to values `[layer neuron]`, at some positions."""

    def edit(post, layer):
        for own_layer, neuron in pairs:
            if own_layer == layer:
                at = torch.ones(post.shape[:2], dtype=torch.bool) if where is None else where
                post[..., neuron][at] = values[layer, neuron]
        return post

    layers = sorted({layer for layer, _ in pairs})
    return {layer: lambda post, layer=layer: edit(post, layer) for layer in layers}


def means_of(reference, layers, at):
    """The mean of each down projection's inputs over positions."""
    found = torch.zeros(6, 224)

    def note(post, layer):
        found[layer] = post[at].double().mean(dim=0).float()
        return post

    reference.logits({layer: lambda post, layer=layer: note(post, layer) for layer in layers})
    return found


@pytest.mark.parametrize(
    ("value", "where"), [(0.0, None), (0.0, "image"), (0.5, ["text", "generated"]), ("mean", None)]
)
def test_answers_are_those_of_the_whole_model_with_the_same_neurons_set(lens, value, where):
    result = analysis.neuron_ablation(lens, EXAMPLES, NEURONS, draws=2, value=value, where=where)
    reference = HuggingFace(lens, EXAMPLES)
    attended = reference.inputs.attention_mask.bool()
    assert not bool(attended.all())  # one is padded
    names = [where] if isinstance(where, str) else where
    mask = None if names is None else torch.stack([reference.inputs.modality.mask(name) for name in names]).any(dim=0)
    values = means_of(reference, (0, 1, 4), attended) if value == "mean" else torch.full((6, 224), float(value))
    drawn = random_neurons(chosen_neurons(NEURONS, 6, 224), 2, 0)
    sets = [[], NEURONS, *([tuple(pair) for pair in mask_of.nonzero().tolist()] for mask_of in drawn)]
    expected = [reference.answers(setting(pairs, values, mask)) for pairs in sets]
    for run, (scores, written) in enumerate(expected):
        torch.testing.assert_close(result.log_probability[run], scores, atol=2e-3, rtol=1e-4)
        for row, (tokens, first) in enumerate(zip(written, expected[0][1], strict=True)):
            answer = reference.inputs.tokens[row, reference.answered[row]]
            assert bool(result.right[run, row]) == torch.equal(tokens, answer)
            assert bool(result.changed[run, row]) == (not torch.equal(tokens, first))
            assert result.predicted[run][row] == lens.tokenizer.decode(tokens)
    assert float(result.effect[1].abs().max()) > 0.01 and not bool(result.effect[0].any())


def test_neither_the_batch_nor_the_order_changes_the_numbers(lens):
    whole = analysis.neuron_ablation(lens, EXAMPLES, NEURONS, draws=3)
    one_by_one = analysis.neuron_ablation(lens, EXAMPLES[::-1], NEURONS[::-1], draws=3, batch_size=1)
    torch.testing.assert_close(one_by_one.log_probability.flip(1), whole.log_probability, atol=2e-3, rtol=1e-4)
    assert one_by_one.neurons == whole.neurons == tuple(NEURONS)
    parts = [analysis.neuron_ablation(lens, [example], NEURONS, draws=3) for example in EXAMPLES]
    assert torch.equal(NeuronAblation.combine(parts).log_probability, one_by_one.log_probability.flip(1))
    mask = chosen_neurons(NEURONS, 6, 224)
    assert torch.equal(analysis.neuron_ablation(lens, EXAMPLES, mask, draws=3).log_probability, whole.log_probability)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_planted_neuron_matters_and_random_ones_do_not(engine):
    """Neuron 7 of the last layer writes "Green" wherever the model answers."""
    model = lensplug.tiny.llava_onevision()
    examples = [Example(QUESTION, "Green", images=[scene(color)]) for color in ("red", "blue", "orange")]
    inputs = model.prepare([QUESTION] * 3, images=[list(one.images) for one in examples])
    read = []
    layer = model.hf_model.get_decoder().layers[-1]
    handle = layer.mlp.register_forward_pre_hook(lambda module, args: read.append(args[0][:, -1].mean(dim=0)))
    with torch.no_grad():
        model.hf_model(**inputs.model_inputs)
        handle.remove()
        green = model.tokenizer("Green", add_special_tokens=False)["input_ids"][0]
        towards = read[0] / read[0].norm()
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight[7] = towards
        layer.mlp.down_proj.weight[:, 7] = 100 * model.hf_model.get_output_embeddings().weight[green]
    result = analysis.neuron_ablation(wrapped(model, engine), examples, [(5, 7)], draws=4)
    assert result.right[0].all() and not result.right[1].any() and result.right[2:].all()
    assert result.predicted[1] == ("Red", "Blue", "Orange") and bool(result.changed[1].all())
    assert float(result.beyond_random.max()) < -1 and float(result.effect[2:].abs().max()) < 0.1
    summary = result.summary()
    assert summary.right.tolist() == [1, 0, 1] and summary.changed.tolist() == [0, 1, 0]
    assert summary.beyond_random["chosen"] == pytest.approx(float(result.beyond_random.mean()))


@pytest.mark.parametrize("engine", ENGINES)
def test_neurons_that_write_nothing_change_no_bit(engine):
    model = lensplug.tiny.llava_onevision()
    with torch.no_grad():
        model.hf_model.get_decoder().layers[2].mlp.down_proj.weight.zero_()
    silent = wrapped(model, engine)
    before = silent.run_with_cache(silent.prepare(QUESTION, images=list(EXAMPLES[0].images)), names_filter=[])[0]
    result = analysis.neuron_ablation(silent, EXAMPLES, [(2, neuron) for neuron in range(100)], draws=2)
    assert torch.equal(result.log_probability, result.log_probability[:1].expand(4, -1))
    assert not bool(result.changed.any()) and not bool(result.beyond_random.any())
    after = silent.run_with_cache(silent.prepare(QUESTION, images=list(EXAMPLES[0].images)), names_filter=[])[0]
    assert torch.equal(before, after)
    assert not any(point._forward_hooks for point in silent.model.hook_dict.values())


def test_random_sets_have_as_many_neurons_of_each_layer_and_none_of_the_chosen():
    chosen = torch.zeros(4, 10, dtype=torch.bool)
    chosen[0, :5] = chosen[2, 3] = True
    drawn = random_neurons(chosen, 50, seed=1)
    assert all(torch.equal(one.sum(dim=1), chosen.sum(dim=1)) and not bool((one & chosen).any()) for one in drawn)
    assert torch.stack(drawn)[:, 2].any(dim=0).sum() == 9  # every other one comes up
    fewer, other = random_neurons(chosen, 3, seed=1), random_neurons(chosen, 3, seed=2)
    assert all(map(torch.equal, fewer, drawn)) and not all(map(torch.equal, other, drawn))


def test_tables_of_each_example_and_run(lens):
    result = analysis.neuron_ablation(lens, EXAMPLES, NEURONS, draws=2)
    table = result.to_dataframe()
    assert table.columns.tolist()[:5] == list(result.label_columns) and len(table) == 3 * 4
    assert table.groupby("condition").size().to_dict() == {"none": 3, "chosen": 3, "random": 6}
    assert table[table.condition == "chosen"].log_probability.tolist() == result.log_probability[1].tolist()
    assert table[(table.draw == 1) & (table.example == 2)].effect.tolist() == [float(result.effect[3, 2])]
    numbers = result.over_examples()
    assert numbers.labels == {"condition": ["none", "chosen", "random"]}
    means = table.groupby(["example", "condition"], sort=False)[["log_probability", "right", "changed"]].mean()
    for name in ("log_probability", "right", "changed"):
        assert numbers.values[name].flatten().tolist() == pytest.approx(means[name].tolist())
    summary = result.summary()
    of_draws = table[table.condition == "random"].groupby("draw").effect.mean()
    assert summary.spread_over_draws["random"] == pytest.approx(of_draws.std())
    assert summary.standard_error["chosen"] == pytest.approx(table[table.condition == "chosen"].effect.sem())


def test_the_figure_shows_the_means_and_each_random_set(lens):
    result = analysis.neuron_ablation(lens, EXAMPLES, NEURONS, draws=2, where="image")
    figure, summary = views.draw(result), result.summary()
    left, right = ([trace for trace in figure.data if trace.xaxis == axis] for axis in ("x", "x2"))
    assert list(left[0].x) == pytest.approx(result.effect[2:].mean(dim=1).tolist(), abs=1e-6)
    assert [trace.x[0] for trace in left[1:]] == pytest.approx(summary.effect.tolist())
    assert left[2].error_x.array[0] == pytest.approx(1.96 * summary.standard_error["chosen"])
    assert [trace.x[0] for trace in right[1:]] == pytest.approx(summary.right.tolist())
    assert "300 neurons of 3 layers" in figure.layout.title.text and "at image positions" in figure.layout.title.text
    single = views.draw(analysis.neuron_ablation(lens, EXAMPLES[:1], [(1, 2)], draws=1))
    assert "nan" not in single.layout.title.text and "1 neuron of 1 layer" in single.layout.title.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neurons": []}, "no neurons are given"),
        ({"neurons": torch.zeros(6, 224, dtype=torch.bool)}, "no neurons are given"),
        ({"neurons": torch.ones(5, 224, dtype=torch.bool)}, r"6 layers of 224 neurons: give a mask \[6, 224\]"),
        ({"neurons": [(6, 0)]}, "there is no neuron 0 of layer 6: the model has layers 0 to 5"),
        ({"neurons": [(0, 224)]}, "with neurons 0 to 223 each"),
        ({"neurons": [(-1, 0)]}, "there is no neuron 0 of layer -1"),
        ({"neurons": [(1, 2, 3)]}, r"neurons has the tuple \(1, 2, 3\), expected \(layer, neuron\)"),
        ({"neurons": [[True, False]]}, "expected .layer, neuron., two whole numbers"),
        ({"neurons": [(1, 2), (0, 5), (1, 2)]}, "neuron 2 of layer 1 is given twice"),
        ({"neurons": [(3, neuron) for neuron in range(113)]}, "113 of the 224 neurons of layer 3 are chosen"),
        ({"neurons": "flowers"}, "neurons is 'flowers', expected"),
        ({"examples": []}, "there are no examples"),
        ({"examples": [Example(QUESTION, "", images=[scene("red")])]}, "has no answer: give the words"),
        ({"examples": [Example(QUESTION, 5, images=[scene("red")])]}, "the answer 5 is not a text"),
        ({"examples": [Example(QUESTION, "Red")], "where": "image"}, "has no image position"),
        ({"where": "smell"}, "where is 'smell', expected"),
        ({"where": []}, "where is ..: name modalities that the model reads"),
        ({"where": "pad"}, "where is 'pad': name modalities that the model reads"),
        ({"value": float("inf")}, "value is inf, expected a finite number"),
        ({"value": "median"}, "value is 'median', expected 'mean' or"),
        ({"draws": 0}, "draws is 0, expected at least 1"),
        ({"draws": 1001}, "draws is 1001, expected at most 1000: each runs every example once"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_cannot_be_done_is_refused(lens, change, message):
    given = {"examples": EXAMPLES[:1], "neurons": [(1, 2)], **change}
    with pytest.raises(LensplugError, match=message):
        analysis.neuron_ablation(lens, given.pop("examples"), given.pop("neurons"), **given)


def test_half_of_a_layer_can_be_chosen(lens):
    result = analysis.neuron_ablation(lens, EXAMPLES[:1], [(3, neuron) for neuron in range(112)], draws=1)
    assert len(result.neurons) == 112
