"""What studying a 7B-size model costs beside running it, on one GPU, within eight minutes.

A LLaVA-OneVision whose language core has the size of Qwen2-7B (28 layers, 3,584 wide, 28 heads, 4 key-value heads,
vocabulary 152,064) with random weights in bfloat16, and a tiny vision tower, which is not what is measured. Every way
takes its turn in one process; memory is the peak above the weights.

1. Head specialisation and the logit lens of the last position, at several lengths, beside Hugging Face's forward.
2. An answer beside Hugging Face's `generate`: plain, under a knockout in every layer, under steering in every layer.
3. A knockout sweep: one cut in each layer, beside as many plain forwards.
4. A study of drawn pictures at batch 8: examples in a second, beside a plain loop's forwards.

    python benchmarks/gpu.py                                   # 18 GB of GPU memory for the weights
    python benchmarks/gpu.py --device cpu --size small         # the script itself, in half a minute
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import peak
from rich.console import Console
from rich.table import Table

import lensplug
from lensplug import analysis
from lensplug.interventions import Knockout, Steer
from lensplug.tiny.image_model import build_model, build_processor
from lensplug.tiny.scenes import draw_scene

SIZES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152_064},
    "small": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
              "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
LENGTHS = {"7b": (1500, 3000, 7300), "small": (60, 120)}
QUESTION = "What is the color? Answer single word."
NEW, EXAMPLES, BATCH = 32, 64, 8


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["hooked_transformer", "bridge"])
    return parser.parse_args()


def lenses(given: argparse.Namespace) -> dict[str, Any]:
    """Engine -> lens, on one model's weights, made on the device in their own dtype."""
    processor = build_processor()
    config = build_model(processor).config
    config.text_config = transformers.Qwen2Config(
        **SIZES[given.size], max_position_embeddings=32_768, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None, pad_token_id=processor.tokenizer.pad_token_id,
    )  # fmt: skip
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    with torch.device(given.device):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlavaOnevisionForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
    return {engine: lensplug.wrap(model, processor, engine=engine, check=False) for engine in given.engines}


class Measured:
    """Seconds and peak memory of ways that take turns, the first of which is 1."""

    def __init__(self, given: argparse.Namespace, title: str) -> None:
        """Begin an empty table."""
        self._given = given
        self.table = Table(title=title, title_justify="left")
        for column in ("", "way", "seconds", "x time", "GB", "x memory"):
            self.table.add_column(column, justify="left" if column in ("", "way") else "right")

    def add(self, heading: str, ways: Mapping[str, Callable[[], Any]]) -> None:
        """Measure some ways, after one turn for warming up; a line for each."""
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(self._given.rounds + 1):
            for name, way in ways.items():
                seconds = self._seconds(way)
                if turn:
                    times[name].append(seconds)
        memory = {name: self._memory(way) for name, way in ways.items()}
        first = next(iter(ways))
        for name, each in times.items():
            seconds, own = statistics.median(each), statistics.median(times[first])
            self.table.add_row(
                heading if name == first else "", name, f"{seconds:.3f}", f"{seconds / own:.2f}",
                f"{memory[name] / 1e9:.2f}", f"{memory[name] / max(memory[first], 1):.2f}",
            )  # fmt: skip

    def _seconds(self, way: Callable[[], Any]) -> float:
        start = time.perf_counter()
        way()
        if self._given.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _memory(self, way: Callable[[], Any]) -> int:
        if not self._given.device.startswith("cuda"):
            return peak(way)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return torch.cuda.max_memory_allocated() - before


def prompt(lens: Any, length: int) -> Any:
    """Random words."""
    tokens = torch.randint(5, 400, (1, length), generator=torch.Generator().manual_seed(length))
    return lens.encode({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


def studying(given: argparse.Namespace, by_engine: Mapping[str, Any]) -> Table:
    """Two analyses at one position."""
    measured = Measured(given, "Head specialisation and logit lens of the last position")
    for length in LENGTHS[given.size]:
        ways: dict[str, Callable[[], Any]] = {}
        for engine, lens in by_engine.items():
            inputs = prompt(lens, length)
            if not ways:
                ways["Hugging Face, SDPA"] = lambda lens=lens, inputs=inputs: plain(lens, inputs)
            ways[engine] = lambda lens=lens, inputs=inputs: analysed(lens, inputs)
        measured.add(f"{length:,} tokens", ways)
    return measured.table


def plain(lens: Any, inputs: Any) -> Any:
    decoder, head = lens.hf_model.get_decoder(), lens.hf_model.get_output_embeddings()
    states = decoder(inputs_embeds=inputs.embeds, attention_mask=inputs.attention_mask, use_cache=False)
    return head(states.last_hidden_state[:, -1:])


def analysed(lens: Any, inputs: Any) -> Any:
    _, cache = lens.run_with_cache(
        inputs, needs=[analysis.head_specialization, analysis.logit_lens], query_positions=[-1],
        residual_positions=[-1], logit_positions=[-1],
    )  # fmt: skip
    return analysis.head_specialization(cache, inputs.modality), analysis.logit_lens(cache)


def answering(given: argparse.Namespace, by_engine: Mapping[str, Any]) -> Table:
    """Answers, with edits in every layer."""
    measured = Measured(given, f"An answer of {NEW} tokens")
    length = LENGTHS[given.size][1]
    width = SIZES[given.size]["hidden_size"]
    edits = {
        "": [],
        ", knockout in every layer": [Knockout(from_=list(range(length // 6, length * 5 // 6)), to="last")],
        ", steering in every layer": [Steer(torch.ones(width), scale=0.01)],
    }
    ways: dict[str, Callable[[], Any]] = {}
    for engine, lens in by_engine.items():
        inputs = prompt(lens, length)
        if not ways:
            ways["Hugging Face, generate"] = lambda lens=lens, inputs=inputs: lens.hf_model.generate(
                **inputs.model_inputs, max_new_tokens=NEW, do_sample=False
            )
        for name, each in edits.items():
            ways[engine + name] = lambda lens=lens, inputs=inputs, each=each: under(each, lens, inputs)
    measured.add(f"{length:,} tokens", ways)
    return measured.table


def under(edits: Any, lens: Any, inputs: Any) -> Any:
    with lens.intervene(*edits):
        return lens.generate(inputs, max_new_tokens=NEW)


def sweeping(given: argparse.Namespace, by_engine: Mapping[str, Any]) -> Table:
    """One cut in each layer."""
    measured = Measured(given, "A knockout in each layer, one after another")
    length, ways = LENGTHS[given.size][0], {}
    for engine, lens in by_engine.items():
        inputs, last = prompt(lens, length), torch.tensor([[length - 1]])
        layers = range(SIZES[given.size]["num_hidden_layers"])
        if not ways:
            ways[f"Hugging Face, {len(layers)} forwards"] = lambda lens=lens, inputs=inputs, layers=layers: [
                plain(lens, inputs) for _ in layers
            ]
        ways[engine] = lambda lens=lens, inputs=inputs, layers=layers, last=last: [
            cut(lens, inputs, layer, last) for layer in layers
        ]
    measured.add(f"{length:,} tokens", ways)
    return measured.table


def cut(lens: Any, inputs: Any, layer: int, last: torch.Tensor) -> Any:
    length = inputs.shape[1]
    with lens.intervene(Knockout(from_=list(range(length // 6, length * 5 // 6)), to="last", layers=layer)):
        return lens.logits_at(inputs, last)


def study_rate(lens: Any) -> str:
    """A study in a folder, which keeps its results, and a loop of plain forwards over the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        for index in range(EXAMPLES):
            draw_scene(random.Random(index), size=(96, 96)).image.save(Path(folder) / f"{index:03d}.png")
        pictures = [str(path) for path in sorted(Path(folder).glob("*.png"))]
        study = lensplug.Study(Path(folder) / "study", model="lensplug.tiny:llava_onevision")
        study.add_folder(folder, prompt=QUESTION)
        study.measure(analysis.head_specialization)
        study.measure(analysis.logit_lens)
        start = time.perf_counter()
        study.run(lens=lens, batch=BATCH)
        of_study = time.perf_counter() - start
        start = time.perf_counter()
        for first in range(0, EXAMPLES, BATCH):
            batch = pictures[first : first + BATCH]
            inputs = lens.prepare([QUESTION] * len(batch), images=[[picture] for picture in batch])
            plain(lens, inputs)
        loop = time.perf_counter() - start
    return (
        f"Study at batch {BATCH}, {inputs.shape[1]} positions: {EXAMPLES / of_study:.1f} examples a second;"
        f" {of_study / loop:.2f} x the time of preparing and plain forwards"
    )


def main(given: argparse.Namespace) -> None:
    console, start = Console(width=110), time.perf_counter()
    device = torch.cuda.get_device_name() if given.device.startswith("cuda") else given.device
    console.print(f"{given.size}, {device}; torch {torch.__version__}, transformers {transformers.__version__}")
    by_engine = lenses(given)
    with torch.no_grad():
        for part in (studying, answering, sweeping):
            console.print(part(given, by_engine))
        console.print(study_rate(next(iter(by_engine.values()))))
    console.print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main(options())
