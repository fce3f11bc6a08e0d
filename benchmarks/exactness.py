"""How exactly each engine computes each family: the largest difference of a logit from Hugging Face with SDPA.

The small random models of the tests, whose weights have a large variance (with small ones everything agrees). Writes
`exactness.csv` and, from it, `exactness.md`; rows of another version of TransformerLens stay, so run it once in each
environment.

    python benchmarks/exactness.py
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))  # the builders of small models

import beside  # noqa: E402
import models  # noqa: E402
from support.audio_llamas import audio_llama, sounds  # noqa: E402
from support.audio_llamas import processed as heard  # noqa: E402
from support.audio_relatives import RELATIVES, relative  # noqa: E402
from support.built import HOOKED  # noqa: E402

import lensplug  # noqa: E402
from lensplug.engines import ENGINES  # noqa: E402

TABLE, PAGE = HERE / "exactness.csv", HERE / "exactness.md"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def audio_relative(name: str) -> tuple[Any, dict[str, Any]]:
    """A relative of audio-LLaMA, and a prompt with one sound."""
    model, processor = relative(name)
    lens = lensplug.wrap(model, processor, check=False)
    return model, dict(lens.prepare("What is said?", audio=[(sounds(0.7)[0], 16000)]).model_inputs)


def audio_llama_of(encoder: str) -> tuple[Any, dict[str, Any]]:
    """An audio-LLaMA, and two prompts with sounds of different lengths."""
    model, processor = audio_llama(encoder)
    return model, dict(heard(processor, ["How? <audio>", "How does <audio> sound?"], sounds(0.7, 1.3)))


def text_only(name: str) -> tuple[Any, dict[str, Any]]:
    """A plain language model, and a prompt."""
    tokens = models.text_tokens()
    return models.text_model(name), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def onevision() -> tuple[Any, dict[str, Any]]:
    """LLaVA-OneVision, and a prompt with two images."""
    model, processor = models.llava_onevision()
    return model, models.processed(processor, (60, 44), (37, 90))


FAMILIES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    **{f"text: {name}": lambda name=name: text_only(name) for name in models.TEXT_CORES},
    "image: llava-onevision": onevision,
    **{f"image: {name}": build for name, build in models.IMAGE_FAMILIES.items()},
    "image: qwen2-vl": lambda: (beside.qwen2_vl(), beside.qwen_prompts(12, 9)),
    "image: qwen2.5-vl": lambda: (beside.qwen2_5_vl(), beside.qwen_prompts(12, 9)),
    "image: gemma3": lambda: (beside.gemma3(), beside.gemma_prompts(12, 9)),
    **{f"audio: {name}": lambda name=name: audio_relative(name) for name in RELATIVES},
    **{f"audio: audio-llama, {name}": lambda name=name: audio_llama_of(name) for name in ("wav2vec2", "whisper")},
}


def rows() -> Iterator[dict[str, Any]]:
    """One for each engine, family and dtype."""
    for family, build in FAMILIES.items():
        model, inputs = build()
        for dtype in DTYPES:
            cast = copy.deepcopy(model).to(dtype)
            for engine in [name for name in ENGINES if name == "bridge" or HOOKED]:
                row = {"transformer_lens": version("transformer-lens"), "engine": engine, "family": family}
                row["dtype"] = str(dtype).removeprefix("torch.")
                try:
                    lens = lensplug.wrap(copy.deepcopy(cast), engine=engine, check=False)
                    report = lens.check(lens.encode(inputs))
                    row |= {"difference": report.max_logit_difference, "largest_logit": report.logit_scale}
                except lensplug.LensplugError:
                    row |= {"difference": None, "largest_logit": None}
                print(*row.values(), file=sys.stderr)
                yield row


def page(table: pd.DataFrame) -> str:
    """The table in Markdown: a line for each family and dtype, a column for each engine."""
    table = table.assign(
        column=table.engine + ", " + table.transformer_lens,
        cell=["refused" if pd.isna(difference) else f"{difference:.1e}" for difference in table.difference],
    )
    lines = table.pivot_table(index=["family", "dtype"], columns="column", values="cell", aggfunc="first", sort=False)
    scale = table.groupby(["family", "dtype"], sort=False).largest_logit.max()
    head = ["family", "dtype", "largest logit", *lines.columns]
    text = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * 2 + ['---:'] * (len(head) - 2))} |"]
    for (family, dtype), cells in lines.iterrows():
        text.append(f"| {' | '.join([family, dtype, f'{scale[family, dtype]:.1f}', *cells.fillna('not run')])} |")
    return "\n".join(
        [
            "# The largest difference of a logit from Hugging Face with SDPA",
            "",
            "Small random models (`benchmarks/exactness.py`), a column for each engine and version of TransformerLens;"
            f" torch {torch.__version__.partition('+')[0]}, transformers {version('transformers')}, on a CPU. In half"
            " precision that is rounding, which large random weights make large. `lens.check(inputs)` says the same of"
            " your model.",
            "",
            *text,
            "",
        ]
    )


def main() -> None:
    torch.set_num_threads(1)
    made = pd.DataFrame(rows())
    if TABLE.exists():
        old = pd.read_csv(TABLE)
        made = pd.concat([old[old.transformer_lens != version("transformer-lens")], made])
    made = made.sort_values(["engine", "transformer_lens"], ascending=[False, True], kind="stable")
    made.to_csv(TABLE, index=False, float_format="%.3g")
    PAGE.write_text(page(made), encoding="utf-8")


if __name__ == "__main__":
    main()
