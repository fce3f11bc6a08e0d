"""Make a tiny checkpoint again: `python -m lensplug.tiny.train llava-onevision` (or `audio-llama`).

About 35 (or 11) minutes on two cores, from a fixed seed. The finished folder (configuration, tokenizer, processor,
weights) replaces the one that ships in the package, or goes to `--out`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from lensplug.files.unfinished_folder import unfinished_folder
from lensplug.tiny import CHECKPOINTS, image_model, sound_model
from lensplug.tiny.scenes import SIZES, TOPICS, Scene, ask, draw_scene
from lensplug.tiny.voices import QUESTIONS, SAMPLING_RATE, Voice, make_voice, topics

IGNORED = -100  # the label that the Hugging Face loss leaves out


@dataclass(frozen=True)
class Task:
    """What `fit` needs to know of a model."""

    processor: Any
    model: Any
    answer_start: str
    """What the chat template writes before an answer."""
    batches: Iterator[Any]


def about_scene(rng: random.Random, scene: Scene) -> list[dict]:
    """The three questions about one scene in a random order, with their answers."""
    questions = [ask(rng, scene, topic=topic) for topic in rng.sample(TOPICS, k=len(TOPICS))]
    return conversation([(question.prompt, question.answer) for question in questions], "image")


def about_voice(rng: random.Random, voice: Voice, *, heard: bool) -> list[dict]:
    """Every question about one voice in a random order, with its answer; the transcript comes once."""
    chosen_topics = topics(voice, heard=heard)
    order = rng.sample(chosen_topics, k=len(chosen_topics))
    prompts = [voice.prompt(order[0]), *(QUESTIONS[topic] for topic in order[1:])]
    answers = [voice.answer(topic, heard=heard) for topic in order]
    return conversation(list(zip(prompts, answers, strict=True)), "audio" if heard else None)


def conversation(turns: list[tuple[str, str]], medium: str | None) -> list[dict]:
    """Questions and answers about one medium, or about words alone, as chat messages.

    Several answers for one medium: several times the signal at nearly the cost of one. The first turn is
    the very prompt that a user asks.
    """
    messages: list[dict] = []
    for prompt, answer in turns:
        media = [] if messages or medium is None else [{"type": medium}]
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": prompt}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
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


def train_llava_onevision(seed: int, batch_size: int, steps: int) -> Task:
    """The tiny LLaVA-OneVision: what is true of the coloured shape in an image."""
    rng = random.Random(seed)
    processor = image_model.build_processor()

    def batches() -> Iterator[Any]:
        for step in range(steps):
            # One size a batch, so that little of it is padding; small images first, which cost half.
            size = rng.choice(SIZES[:3] if step < steps // 2 else SIZES)
            scenes = [draw_scene(rng, size=size) for _ in range(batch_size)]
            texts = [processor.apply_chat_template(about_scene(rng, scene)) for scene in scenes]
            yield processor(text=texts, images=[[scene.image] for scene in scenes], padding=True, return_tensors="pt")

    return Task(processor, image_model.build_model(processor), "<|im_start|>assistant\n", batches())


def train_audio_llama(seed: int, batch_size: int, steps: int) -> Task:
    """The tiny audio-LLaMA: questions about a voice and its transcript."""
    rng = random.Random(seed)
    processor = sound_model.build_processor()

    def batches() -> Iterator[Any]:
        for _ in range(steps):
            # One in eight is read without being heard, so that the model knows what to do without the sound.
            voices = [make_voice(rng, transcript=None if i % 8 else True) for i in range(batch_size)]
            texts = [processor.apply_chat_template(about_voice(rng, v, heard=i % 8 > 0)) for i, v in enumerate(voices)]
            audio = [voice.waveform for i, voice in enumerate(voices) if i % 8]
            yield processor(text=texts, audio=audio, sampling_rate=SAMPLING_RATE)

    return Task(processor, sound_model.build_model(processor), "<|assistant|>\n", batches())


def fit(task: Task, *, steps: int, learning_rate: float) -> None:
    """Train on every batch of the task, answers only."""
    model, tokenizer = task.model.train(), task.processor.tokenizer
    start = tokenizer(task.answer_start)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    columns = (
        TextColumn("training, loss {task.fields[loss]:.3f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=steps, loss=float("nan"))
        for batch in task.batches:
            labels = answer_labels(batch["input_ids"], start=start, end=tokenizer.eos_token_id)
            loss = model(**batch, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update(bar, advance=1, loss=loss.item())


def save(model: Any, processor: Any, out: Path) -> None:
    """Write model and processor as half-precision safetensors; `out` is only touched when all is written."""
    with unfinished_folder(out) as folder:
        model.half().save_pretrained(folder)
        processor.save_pretrained(folder)


TRAINERS = {"llava-onevision": (train_llava_onevision, 2800), "audio-llama": (train_audio_llama, 900)}
"""Name -> the task, and how many steps it takes."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(TRAINERS))
    parser.add_argument("--out", type=Path, help="a folder; by default the one inside the package")
    parser.add_argument("--steps", type=int, help="by default as many as the shipped checkpoint had")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make, default_steps = TRAINERS[options.model]
    steps = options.steps or default_steps
    torch.manual_seed(options.seed)
    task = make(options.seed, options.batch_size, steps)
    fit(task, steps=steps, learning_rate=options.learning_rate)
    save(task.model.eval(), task.processor, options.out or CHECKPOINTS / options.model)


if __name__ == "__main__":
    main()
