"""Path patching against plain hooks in three whole runs for each sender, and where the circuit is made by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.beside import given_of, wrapped
from support.built import ENGINES
from support.known_circuit import COPIES, READS, known_circuit

import lensplug
from lensplug import LensplugError, MultimodalInput, analysis, views
from lensplug.positions.tokens import single_token
from lensplug.tiny.scenes import draw_scene

COLOR = "What is the color? Answer single word."
PAIR = ("Red", "Blue")
Pair = tuple[MultimodalInput, MultimodalInput]
"""Clean and corrupt."""
SENT = [1, 3]
"""The senders that plain hooks measure in each layer: a whole table of runs takes long."""
HEADS: dict[Any, list[tuple[int, int]]] = {"q": [(2, 0), (4, 5)], "k": [(3, 0), (5, 1)], "v": [(3, 0), (4, 1)]}


@pytest.fixture(scope="module", params=ENGINES)
def lens(request):
    made = lensplug.tiny.llava_onevision()
    return lensplug.wrap(made.hf_model, made.processor, engine=request.param, check=False)


def picture(color):
    return draw_scene(random.Random(3), size=(48, 48), color=color, shape="square", place="left").image


@pytest.fixture(scope="module")
def padded(lens):
    """Two examples, the first with padding on its left."""
    prompts = [COLOR, "What is the color? Answer in a phrase."]
    return tuple(lens.prepare(prompts, images=[[picture(color)]] * 2) for color in ("red", "blue"))


def three_runs(lens, clean, corrupt, measure, receiver, heads, *, senders="heads", mlps="computed", at=None):
    """A path, as the papers say it, from each of these senders of the first three layers: `[layer head example]`.

    Args:
        lens: The lens.
        clean: Inputs with the same padding as those of corrupt.
        corrupt: Inputs.
        measure: Logits to a number for each example.
        receiver: "q", "k", "v" or "logits".
        heads: Those that receive together.
        senders: "heads" or "mlps".
        mlps: "computed" or "frozen".
        at: A mask of positions where the sender is patched; None: all.
    """
    model, n_layers = lens.model, lens.model.cfg.n_layers
    z, mlp = ([f"blocks.{layer}.{end}" for layer in range(n_layers)] for end in ("attn.hook_z", "hook_mlp_out"))
    caches = []
    for inputs in (clean, corrupt):
        with torch.no_grad():
            caches.append(model.run_with_cache(inputs, names_filter=z + mlp)[1])
    of_clean, of_corrupt = caches
    where = torch.ones_like(corrupt.tokens, dtype=torch.bool) if at is None else at

    def path(layer: int, head: int | None) -> torch.Tensor:
        frozen = {name: of_corrupt[name].clone() for name in z + (mlp if mlps == "frozen" else [])}
        if head is None:
            frozen[mlp[layer]] = torch.where(where[..., None], of_clean[mlp[layer]], of_corrupt[mlp[layer]])
        else:
            frozen[z[layer]][:, :, head] = torch.where(
                where[..., None], of_clean[z[layer]][:, :, head], of_corrupt[z[layer]][:, :, head]
            )
        noted = {}

        def note(value, hook):
            noted[hook.name] = value.clone()

        names = {f"blocks.{at}.attn.hook_{receiver}": [h for other, h in heads if other == at] for at, _ in heads}
        hold = [(name, lambda value, hook: frozen[hook.name]) for name in frozen]
        with torch.no_grad():
            logits = model.run_with_hooks(corrupt, fwd_hooks=[*hold, *((name, note) for name in names)])
            if receiver == "logits":
                return measure(logits)

            def write(value, hook):
                value[:, :, names[hook.name]] = noted[hook.name][:, :, names[hook.name]]
                return value

            return measure(model.run_with_hooks(corrupt, fwd_hooks=[(name, write) for name in names]))

    each = SENT if senders == "heads" else [None]
    last = n_layers if receiver == "logits" else max(layer for layer, _ in heads)
    return torch.stack([torch.stack([path(layer, head) for head in each]) for layer in range(min(3, last))])


def difference(lens):
    red, blue = (single_token(word, lens.tokenizer) for word in PAIR)
    return lambda logits: (logits[:, -1, red] - logits[:, -1, blue]).float()


def same(found, expected, receiver=0, group=0):
    values = found.values[:, receiver, : len(expected), group].permute(1, 2, 0)
    values = values[:, SENT] if found.senders == "heads" else values
    torch.testing.assert_close(values, expected, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("mlps", ["computed", "frozen"])
@pytest.mark.parametrize("receiver", ["q", "k", "v", "logits"])
def test_equals_three_runs_with_plain_hooks(lens, padded: Pair, receiver, mlps):
    """Of a batch with left padding, heads that share keys and values, each receiver alone and both together."""
    clean, corrupt = padded
    heads = HEADS.get(receiver, [])
    options: dict[str, Any] = {"receiver": receiver, "mlps": mlps, "progress": False, "layers": (0, 2)}
    each = analysis.path_patching(lens, clean, corrupt, PAIR, heads=heads or None, **options)
    expected = three_runs(lens, clean, corrupt, difference(lens), receiver, heads[:1], mlps=mlps)
    same(each, expected)
    assert bool(each.values[:, 0, len(expected) :].isnan().all()), "no path from there"
    assert float((expected - each.corrupt).abs().max()) > 3e-3, "this test can fail"
    if heads:
        both = analysis.path_patching(lens, clean, corrupt, PAIR, heads={"both": heads}, **options)
        same(both, three_runs(lens, clean, corrupt, difference(lens), receiver, heads, mlps=mlps))
        assert both.receivers == ("both",) and both.receiver_heads == (tuple(sorted(heads)),)


@pytest.mark.parametrize("receiver", ["v", "logits"])
@pytest.mark.parametrize("mlps", ["computed", "frozen"])
def test_mlps_send_too(lens, padded: Pair, receiver, mlps):
    heads = HEADS["v"][:1] if receiver == "v" else None
    found = analysis.path_patching(
        lens, *padded, PAIR, receiver=receiver, heads=heads, senders="mlps", mlps=mlps, progress=False
    )
    measure = difference(lens)
    same(found, three_runs(lens, *padded, measure, receiver, heads or [], senders="mlps", mlps=mlps))


def test_groups_of_positions(lens, padded: Pair):
    clean, corrupt = padded
    groups = torch.where(corrupt.modality.mask("image"), 0, 1)
    found = analysis.path_patching(
        lens, clean, corrupt, PAIR, receiver="k", heads=[(2, 0)], by="sender_and_position", groups=groups, batch=5,
        progress=False,
    )  # fmt: skip
    for group in range(2):
        same(found, three_runs(lens, clean, corrupt, difference(lens), "k", [(2, 0)], at=groups == group), group=group)
    assert found.groups_of(0) == [0, 1] and int((found.groups[0] == -1).sum()) > 0, "padding is in no group"


def test_a_function_of_all_logits(lens, padded: Pair):
    by_function = analysis.path_patching(
        lens, *padded, difference(lens), receiver="q", heads=[(2, 0)], progress=False
    )  # fmt: skip
    by_words = analysis.path_patching(lens, *padded, PAIR, receiver="q", heads=[(2, 0)], progress=False)
    torch.testing.assert_close(by_function.values, by_words.values, atol=5e-4, rtol=1e-4)


def test_frozen_to_the_logits_is_a_write_into_the_stream(lens, padded: Pair):
    """By weights: (z_clean - z_corrupt) W_O added to the last stream, through the final norm."""
    clean, corrupt = padded
    model, last = lens.model, lens.model.cfg.n_layers - 1
    names = ["blocks.2.attn.hook_z", f"blocks.{last}.hook_resid_post"]
    with torch.no_grad():
        caches = [model.run_with_cache(inputs, names_filter=names)[1] for inputs in (clean, corrupt)]
        change = (caches[0][names[0]] - caches[1][names[0]])[:, -1]
        written = torch.einsum("ehd,hdm->ehm", change, model.blocks[2].attn.W_O)
        stream = caches[1][names[1]][:, -1, None] + written
        expected = difference(lens)(model.unembed(model.ln_final(stream)).flatten(0, 1)[:, None]).view(2, -1)
    found = analysis.path_patching(lens, clean, corrupt, PAIR, mlps="frozen", layers=(2, 2), progress=False)
    torch.testing.assert_close(found.values[:, 0, 0, 0], expected, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("read_by", ["k", "v"])
def test_finds_a_circuit_that_is_known(engine, read_by):
    """The copy in layer 0 reaches the answer by one input of one head, and every other path carries nothing."""
    lens, red, blue = known_circuit(engine, read_by)
    ends = analysis.path_patching(lens, red, blue, PAIR, progress=False)
    expected = torch.zeros(2, 4)
    expected[READS] = 1
    torch.testing.assert_close(ends.recovered[0, 0, :, 0], expected, atol=1e-4, rtol=0)
    total = analysis.activation_patching(lens, red, blue, PAIR, activation="z", by="head", progress=False)
    assert float(total.recovered[0, 0, 0, COPIES[1]]) == pytest.approx(1, abs=1e-4), "all of its paths together"
    for receiver in HEADS:
        n_heads = 4 if receiver == "q" else 2
        heads = [(1, head) for head in range(n_heads)]
        found = analysis.path_patching(lens, red, blue, PAIR, receiver=receiver, heads=heads, progress=False)
        expected = torch.zeros(n_heads, 4)
        if receiver == read_by:
            expected[READS[1] // 2, COPIES[1]] = 1
        torch.testing.assert_close(found.recovered[0, :, 0, 0], expected, atol=1e-4, rtol=0)


def test_norms_behind_attention():
    """Gemma 3, whose core is given more than embeddings."""
    lens = wrapped("gemma3")
    corrupt = lens.encode(given_of("gemma3"))
    noise = torch.randn(corrupt.embeds.shape, generator=torch.Generator().manual_seed(0))
    clean = replace(corrupt, embeds=corrupt.embeds + noise)
    paths: list[tuple[Any, list[tuple[int, int]]]] = [("q", [(2, 3)]), ("v", [(2, 1)]), ("logits", [])]
    for receiver, heads in paths:
        found = analysis.path_patching(
            lens, clean, corrupt, (5, 9), receiver=receiver, heads=heads or None, progress=False
        )
        expected = three_runs(
            lens, clean, corrupt, lambda logits: (logits[:, -1, 5] - logits[:, -1, 9]).float(), receiver, heads
        )
        same(found, expected)
        assert float((expected - found.corrupt).abs().max()) > 1e-2, "this test can fail"


def test_swapped_prompts_say_what_is_lost(lens, padded: Pair):
    """As the papers have it: the corrupt sender in the clean run."""
    clean, corrupt = padded
    found = analysis.path_patching(lens, corrupt, clean, PAIR, progress=False, layers=(0, 0))
    expected = three_runs(lens, corrupt, clean, difference(lens), "logits", [])[:1]
    same(found, expected)
    high, low = difference(lens)(lens.model(clean)), difference(lens)(lens.model(corrupt))
    lost = ((high - expected) / (high - low)).permute(2, 0, 1)
    torch.testing.assert_close(found.recovered[:, 0, :, 0, SENT], lost, atol=1e-3, rtol=1e-3)


def test_table_combination_and_figures(lens, padded: Pair):
    options: dict[str, Any] = {"receiver": "v", "heads": [(1, 0), (3, 1)], "progress": False}
    found = analysis.path_patching(lens, *padded, PAIR, **options)
    table = found.to_dataframe()
    assert len(table) == 2 * (1 + 3) * 6 and not table["value"].isna().any()
    row = table[(table.example == 1) & (table.receiver == "3.1") & (table.layer == 2) & (table["head"] == 4)]
    assert float(row["value"].item()) == float(found.values[1, 1, 2, 0, 4])
    both = analysis.PathPatching.combine([found, found])
    assert len(both.values) == 4
    one = views.path_patching(found, receiver=1, example=1).data[0]
    torch.testing.assert_close(torch.tensor(one.z), found.recovered[1, 1, :, 0])
    every = views.path_patching(found).data[0]
    torch.testing.assert_close(torch.tensor(every.z), found.recovered[0, :, :, 0].flatten(1), equal_nan=True)
    for message, wrong in (("receiver is 2", {"receiver": 2}), ("example is 5", {"example": 5})):
        with pytest.raises(LensplugError, match=message):
            views.path_patching(found, **wrong)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"receiver": "q"}, "needs the heads"),
        ({"heads": [(2, 0)]}, "has no heads"),
        ({"receiver": "q", "heads": [(0, 1)]}, "layer 0 receive nothing"),
        ({"receiver": "q", "heads": [(9, 1)]}, "layers 0 to 5"),
        ({"receiver": "q", "heads": [(1, 9)]}, "heads 0 to 5"),
        ({"receiver": "k", "heads": [(1, 4)]}, "key-value heads, 0 to 1, each of which 3"),
        ({"receiver": "q", "heads": {"none": []}}, "expected pairs"),
        ({"receiver": "q", "heads": [(2, 0)], "layers": (2, 4)}, "no sender has a path"),
        ({"groups": torch.zeros(95).long()}, "by='sender' patches all positions"),
        ({"receiver": "resid"}, "receiver"),
        ({"batch": 0}, "batch"),
    ],
)
def test_refusals(lens, padded: Pair, options, message):
    with pytest.raises(LensplugError, match=message):
        analysis.path_patching(lens, *padded, PAIR, progress=False, **options)
