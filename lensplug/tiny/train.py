"""Make a tiny checkpoint again: `python -m lensplug.tiny.train llava-onevision`.

About 35 minutes on two cores, from a fixed seed. The finished folder (configuration, tokenizer, processor,
weights) replaces the one that ships in the package, or goes to `--out`.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from lensplug.tiny import CHECKPOINTS
from lensplug.tiny.image_model import build_model, build_processor
from lensplug.tiny.scenes import SIZES, TOPICS, Scene, ask, draw_scene

IGNORED = -100  # the label that the Hugging Face loss leaves out


def conversation(rng: random.Random, scene: Scene) -> list[dict]:
    """The three questions about one scene in a random order, with their answers.

    Three answers for one picture: three times the signal at nearly the cost of one. The first turn is
    the very prompt that a user asks.
    """
    messages: list[dict] = []
    for topic in rng.sample(TOPICS, k=len(TOPICS)):
        question = ask(rng, scene, topic=topic)
        media = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": question.prompt}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return messages


def answer_labels(tokens: Tensor, *, start: list[int], end: int) -> Tensor:
    """`tokens` inside an answer (after `start`, up to and with `end`); `IGNORED` elsewhere."""
    labels = torch.full_like(tokens, IGNORED)
    for row, ids in enumerate(tokens.tolist()):
        inside = False
        for pos, token in enumerate(ids):
            if inside:
                labels[row, pos] = token
            if token == end:
                inside = False
            elif ids[pos - len(start) + 1 : pos + 1] == start:
                inside = True
    return labels


def train_llava_onevision(out: Path, *, steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Train the tiny LLaVA-OneVision and save it, with its processor, to `out`."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    processor = build_processor()
    model = build_model(processor).train()
    start = processor.tokenizer("<|im_start|>assistant\n")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)

    columns = (
        TextColumn("training, loss {task.fields[loss]:.3f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps, loss=float("nan"))
        for step in range(steps):
            # One size a batch, so that little of it is padding; small pictures first, which cost half.
            size = rng.choice(SIZES[:3] if step < steps // 2 else SIZES)
            scenes = [draw_scene(rng, size=size) for _ in range(batch_size)]
            texts = [processor.apply_chat_template(conversation(rng, scene)) for scene in scenes]
            batch = processor(text=texts, images=[[scene.image] for scene in scenes], padding=True, return_tensors="pt")
            labels = answer_labels(batch["input_ids"], start=start, end=processor.tokenizer.eos_token_id)
            loss = model(**batch, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, loss=loss.item())

    save(model.eval(), processor, out)


def save(model: Any, processor: Any, out: Path) -> None:
    """Write model and processor as half-precision safetensors; `out` is only touched when all is written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        model.half().save_pretrained(folder)
        processor.save_pretrained(folder)
        out.mkdir(exist_ok=True)
        for file in Path(folder).iterdir():
            file.replace(out / file.name)


TRAINERS = {"llava-onevision": train_llava_onevision}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(TRAINERS))
    parser.add_argument("--out", type=Path, help="a folder; by default the one inside the package")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    TRAINERS[options.model](
        options.out or CHECKPOINTS / options.model,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
