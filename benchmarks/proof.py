"""How long a proof on load takes: a random core as large as Qwen2-0.5B, known from the table, and tried.

The same model both ways: what CI tests, forced with `prove=True`, and by the parts of its layers.

python benchmarks/proof.py                     # 1 minute, 6 GB
"""

from __future__ import annotations

import logging
import time
import warnings

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import lensplug
from lensplug.patches.bridge import core

SIZE = {
    "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "intermediate_size": 4864, "vocab_size": 151_936, "tie_word_embeddings": True,
}  # fmt: skip
"""Of Qwen2-0.5B."""


def main() -> None:
    """Print a table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    print("| core | dtype | wrap, s | of it proof, s |\n| --- | --- | ---: | ---: |")
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        with torch.no_grad():
            model = Qwen2ForCausalLM(Qwen2Config(**SIZE)).to(dtype).eval()
        for name in ("in the table", "tried"):
            kept = core.CORES.pop("qwen2") if name == "tried" else None
            try:
                begun = time.perf_counter()
                lens = lensplug.wrap(model, engine="bridge", prove=True)
                seconds = time.perf_counter() - begun
            finally:
                if kept is not None:
                    core.CORES["qwen2"] = kept
            short = str(dtype).removeprefix("torch.")
            print(f"| {name} | {short} | {seconds:.1f} | {lens.proof.seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
