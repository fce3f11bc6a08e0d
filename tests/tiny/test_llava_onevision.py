"""The embedded default: it loads offline, answers right on unseen pictures, and can be made again."""

import random
import runpy

import pytest
import torch
import transformers

import lensplug
from lensplug.tiny import CHECKPOINTS
from lensplug.tiny.scenes import TOPICS, ask, draw_scene

UNSEEN = 1_000_003  # training draws from seed 0


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


def test_it_is_a_real_llava_onevision_of_the_promised_size(lens):
    assert type(lens.hf_model) is transformers.LlavaOnevisionForConditionalGeneration
    assert type(lens.processor) is transformers.LlavaOnevisionProcessor
    assert lens.model.cfg.n_layers >= 6 and lens.model.cfg.n_heads >= 6
    assert sum(p.numel() for p in lens.hf_model.parameters()) < 1_200_000
    weights = CHECKPOINTS / "llava-onevision" / "model.safetensors"
    assert weights.stat().st_size < 3_000_000


def test_it_loads_with_from_pretrained_alone_and_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = CHECKPOINTS / "llava-onevision"
    model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")


def test_at_least_97_percent_right_on_unseen_pictures(lens):
    rng = random.Random(UNSEEN)
    right: dict[str, list[bool]] = {topic: [] for topic in TOPICS}
    for _ in range(20):
        scenes = [draw_scene(rng) for _ in range(30)]
        questions = [ask(rng, scene) for scene in scenes]
        batch = lens.prepare([q.prompt for q in questions], images=[[scene.image] for scene in scenes])
        answers = lens.generate(batch, max_new_tokens=6).text
        for question, answer in zip(questions, answers, strict=True):
            right[question.topic].append(answer == question.answer)
    total = [value for values in right.values() for value in values]
    rates = {topic: sum(values) / len(values) for topic, values in right.items()}
    print(f"right on {len(total)} unseen pictures: {sum(total) / len(total):.1%}, {rates}")
    assert sum(total) / len(total) >= 0.97, rates


def test_the_answer_needs_the_picture(lens):
    rng = random.Random(UNSEEN + 1)
    scene = draw_scene(rng, color="red", size=(96, 96))
    other = draw_scene(rng, color="blue", size=(96, 96))
    prompt = "What is the color? Answer single word."
    answers = lens.generate(lens.prepare([prompt, prompt], images=[[scene.image], [other.image]])).text
    assert answers == ["Red", "Blue"]


def test_the_training_command_writes_a_folder_that_loads(tmp_path, monkeypatch):
    out = tmp_path / "made"
    options = ["llava-onevision", "--steps", "2", "--batch-size", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["lensplug.tiny.train", *options])
    with torch.random.fork_rng():
        runpy.run_module("lensplug.tiny.train", run_name="__main__")  # as `python -m` does
    lens = lensplug.load(out, device="cpu", dtype="float32")
    scene = draw_scene(random.Random(0))
    assert lens.check(lens.prepare("What is the color?", images=[scene.image])).agrees
