"""What an answer and a check cost beside Hugging Face's own `generate` and forward.

A LLaVA-OneVision core of the real 0.5B size with random weights and a prompt of 2,500 positions. Ways take turns, after
one for warming up; peak memory above the weights is that of a process of its own for each way. A check runs two
models: beside it stands the forward of Hugging Face alone, with all its logits as it makes them by default.
With --edits, in place of checks: answers under a knockout, steering, an ablation of heads and an activation put in, in
every layer; numbers are in `edits.md`.

    python benchmarks/generating.py
    python benchmarks/generating.py --device cuda --dtype bfloat16 --new 64
    python benchmarks/generating.py --layers 4 --rounds 1                     # in two minutes, on a processor
    python benchmarks/generating.py --edits --layers 4 --width 512 --tokens 3000
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from measuring import peak
from rich.console import Console
from rich.table import Table

ANSWER, FORWARD = "Hugging Face, generate", "Hugging Face, forward"
ENGINES = ("hooked_transformer", "bridge")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2500, help="positions of the prompt")
    parser.add_argument("--new", type=int, default=16, help="tokens of the answer")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=896, help="a multiple of 128; others than 896 have fewer words")
    parser.add_argument("--edits", action="store_true", help="answers under edits, and no checks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args()


def ways(given: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Each call, by name; engines share the weights of one model."""
    import lensplug

    torch.manual_seed(0)
    real = given.width == 896
    config = transformers.Qwen2Config(
        vocab_size=152_000 if real else 32_000, hidden_size=given.width,
        intermediate_size=4864 if real else 4 * given.width, num_hidden_layers=given.layers,
        num_attention_heads=given.width // 64, num_key_value_heads=2, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).eval().to(given.device, getattr(torch, given.dtype))
    tokens = torch.randint(0, 30_000, (given.batch, given.tokens), device=given.device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    found: dict[str, Callable[[], Any]] = {
        ANSWER: lambda: model.generate(**inputs, max_new_tokens=given.new, do_sample=False),
    }
    if not given.edits:
        found[FORWARD] = lambda: model(**inputs, use_cache=False)
    for engine in given.engines:
        lens = lensplug.wrap(model, engine=engine, check=False)
        prompt = lens.encode(inputs)
        found[f"lens.generate, {engine}"] = lambda lens=lens, prompt=prompt: lens.generate(
            prompt, max_new_tokens=given.new
        )
        if not given.edits:
            found[f"lens.check, {engine}"] = lambda lens=lens, prompt=prompt: lens.check(prompt)
            continue
        for name, edit in edits(lens, prompt).items():
            found[f"{name}, {engine}"] = lambda lens=lens, prompt=prompt, edit=edit: under(
                edit, lens, prompt, given.new
            )
    return found


def edits(lens: Any, prompt: Any) -> dict[str, Any]:
    """One of each kind, in every layer."""
    from lensplug.interventions import Ablate, Knockout, Replace, Steer

    length, width = prompt.shape[1], lens.model.cfg.d_model
    media = list(range(length // 6, length * 5 // 6))  # as many positions as a picture's
    other = {"blocks.1.hook_resid_post": torch.zeros(*prompt.shape, width, device=prompt.embeds.device)}
    return {
        "knockout": Knockout(from_=media, to="last"),
        "steering": Steer(torch.ones(width), scale=0.01),
        "ablated heads": Ablate(heads=[0]),
        "activation put in": Replace(other, at="resid_post", layers=1, positions=media),
    }


def under(edit: Any, lens: Any, prompt: Any, new: int) -> Any:
    with lens.intervene(edit):
        return lens.generate(prompt, max_new_tokens=new)


def on(device: str, way: Callable[[], Any]) -> float:
    """Seconds of one call, until the device is done."""
    start = time.perf_counter()
    way()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bytes_of(device: str, way: Callable[[], Any]) -> int:
    """The most memory of one call above what was there before."""
    if not device.startswith("cuda"):
        return peak(way)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before


def in_a_process(name: str) -> int:
    run = subprocess.run([sys.executable, *sys.argv, "--peak", name], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{name} ended with {run.returncode}:\n{run.stderr[-2000:]}")
    return int(json.loads(run.stdout.splitlines()[-1]))


def main(given: argparse.Namespace) -> None:
    of_each = ways(given)
    times: dict[str, list[float]] = {name: [] for name in of_each}
    with torch.no_grad():
        for turn in range(given.rounds + 1):
            for name, way in of_each.items():
                seconds = on(given.device, way)
                if turn:
                    times[name].append(seconds)
        on_cuda = given.device.startswith("cuda")
        memory = {name: bytes_of(given.device, way) for name, way in of_each.items()} if on_cuda else {}
    memory = memory or {name: in_a_process(name) for name in of_each}
    shape = f"{given.batch} x {given.tokens:,} positions, {given.new} new, {given.layers} layers, {given.dtype}"
    table = Table(title=f"{shape}, {given.device}", title_justify="left")
    for column in ("way", "seconds", "x time", "MB", "x memory"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name in of_each:
        beside = FORWARD if "check" in name or name == FORWARD else ANSWER
        seconds, own = statistics.median(times[name]), statistics.median(times[beside])
        table.add_row(
            name, f"{seconds:.2f}", f"{seconds / own:.2f}", f"{memory[name] / 1e6:,.0f}",
            f"{memory[name] / memory[beside]:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    chosen = options()
    if chosen.peak:
        with torch.no_grad():
            print(json.dumps(bytes_of(chosen.device, ways(chosen)[chosen.peak])))
    else:
        main(chosen)
