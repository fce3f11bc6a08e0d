"""What wrapping costs: seconds, and memory added as a fraction of the core's weights.

A LLaVA-OneVision of the real 0.5B size (24 layers, 896 wide, 14 heads, 2 key-value heads, vocabulary
152,000; a small vision tower, since it is not wrapped) with random weights, each way in a process of its
own, so that peaks do not mix. `HookedTransformer` with copied weights is what
`process_weights=True` (and TransformerLens's own loading) does.

    python benchmarks/wrap.py
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import time

import psutil
from rich.console import Console
from rich.table import Table

MODES = ("shared", "shared, with the short check", "process_weights")


def build():
    import torch
    import transformers

    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, image_size=384,
            patch_size=14, vision_use_head=False,
        ),
        text_config=transformers.Qwen2Config(
            vocab_size=152_000, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, tie_word_embeddings=True,
        ),
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlavaOnevisionForConditionalGeneration(config).eval()


def measure(mode: str) -> dict[str, float]:
    """Seconds, memory that stays and peak memory of one wrap, in this process."""
    import lensplug

    lensplug.wrap(_tiny(), check=True)  # imports and first-call costs are not the wrap's
    model = build()
    core = lensplug.hf.language_core.LanguageCore.of(model)
    weights = sum(p.numel() * p.element_size() for p in {*core.decoder.parameters(), *core.head.parameters()})
    gc.collect()
    process = psutil.Process()
    before, peak_before = process.memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    lens = lensplug.wrap(model, process_weights=mode == "process_weights", check="check" in mode)
    seconds = time.perf_counter() - start
    gc.collect()
    stays = process.memory_info().rss - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert lens.model.cfg.n_layers == 24
    return {
        "seconds": seconds,
        "stays": stays / weights,
        "peak": max(0, peak - max(peak_before, before)) / weights,
        "weights_gb": weights / 1e9,
    }


def _tiny():
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval()


def main() -> None:
    table = Table(title="Wrapping a LLaVA-OneVision core of 0.5B size, fp32")
    for column in ("mode", "seconds", "memory that stays / weights", "extra peak / weights"):
        table.add_column(column, justify="right")
    for mode in MODES:
        run = subprocess.run([sys.executable, __file__, mode], capture_output=True, text=True, check=True)
        result = json.loads(run.stdout.splitlines()[-1])
        table.add_row(mode, f"{result['seconds']:.2f}", f"{result['stays']:.1%}", f"{result['peak']:.1%}")
    table.caption = f"the core's weights are {result['weights_gb']:.2f} GB"
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
