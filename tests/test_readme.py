"""The README as a newcomer runs it: every Python block, from top to bottom, in one session.

Two things are not as printed: the models of the hub are the tiny trained ones, and what a reader has at hand (files, a
model in memory, a batch of BERT's) is made here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.built import HOOKED
from support.media_files import write_video
from transformer_lens.model_bridge import TransformerBridge
from transformers import BertConfig, BertModel

import lensplug
from lensplug.patches.bridge.core import build_language_bridge
from lensplug.patches.row_indices import as_rows
from lensplug.tiny import CHECKPOINTS
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice

BLOCKS = re.findall(r"^```python\n(.*?)^```", (Path(__file__).parents[1] / "README.md").read_text(), re.S | re.M)
AT_HAND: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Words of a block -> what its reader has at hand, from the names so far."""


def at_hand(words: str) -> Callable[[Any], Any]:
    def note(make: Any) -> Any:
        AT_HAND[words] = make
        return make

    return note


@at_hand("lensplug.wrap(hf_model, processor)")
def in_memory(names: dict[str, Any]) -> dict[str, Any]:
    lens = names["lens"]
    return {
        "hf_model": lens.hf_model,
        "processor": lens.processor,
        "bridge": TransformerBridge.boot_transformers(str(CHECKPOINTS / "llava-onevision"), device="cpu"),
        "processor_outputs": names["inputs"].model_inputs,
        "my_hook": lambda pattern, hook: pattern,
    }


@at_hand("outputs.attentions")
def of_bert(names: dict[str, Any]) -> dict[str, Any]:
    small = BertConfig(
        vocab_size=99,
        hidden_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=32,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    encoder = BertModel(small).eval()
    ids, mask = torch.arange(1, 8)[None], torch.ones(1, 7, dtype=torch.long)
    outputs = encoder(ids, attention_mask=mask, output_attentions=True)
    return {"outputs": outputs, "tokens": [[f"##{i}" if i % 3 == 2 else f"w{i}" for i in range(7)]], "mask": mask}


@at_hand("red_picture")
def two_pictures(names: dict[str, Any]) -> dict[str, Any]:
    red = draw_scene(random.Random(1), color="red", size=(48, 48))
    blue = draw_scene(random.Random(1), color="blue", size=(48, 48))
    return {"red_picture": red.image, "blue_picture": blue.image}


@at_hand("boot_transformers")
def sounding(names: dict[str, Any]) -> dict[str, Any]:
    heard = names["heard"]
    given = {"tokens": heard.tokens, "mask": heard.attention_mask}
    return given | {"waveforms": heard.model_inputs["input_values"]}


@at_hand("ConfigFix")
def a_hooked_transformer(names: dict[str, Any]) -> dict[str, Any]:
    lens = lensplug.tiny.llava_onevision()
    inputs = lens.prepare("What is the color?", images=["photo.jpg"])
    core = lens.core
    return {
        "model": lensplug.engines.build(core, engine="hooked_transformer", tokenizer=lens.tokenizer)[1],
        "embeds": inputs.embeds, "mask": inputs.attention_mask, "answer": torch.tensor([5]),
        "rows": as_rows([[3, 4]]), "tokens": torch.arange(5, 12)[None],
        "decoder": core.decoder, "head": core.head, "text_config": core.text_config,
    }  # fmt: skip


@at_hand("BridgePadding")
def a_bridge_of_the_core(names: dict[str, Any]) -> dict[str, Any]:
    lens = lensplug.tiny.llava_onevision()
    inputs = lens.prepare("What is the color?", images=["photo.jpg"])
    bridge = build_language_bridge(lens.core, tokenizer=lens.tokenizer)
    tokens = torch.arange(5, 12)[None]
    return {"bridge": bridge, "embeds": inputs.embeds, "mask": inputs.attention_mask, "tokens": tokens}


@pytest.fixture
def at_the_readers(tmp_path, monkeypatch):
    """A folder with the reader's files, and the tiny models in place of those of the hub."""
    monkeypatch.chdir(tmp_path)
    draw_scene(random.Random(3), size=(96, 96)).image.save("photo.jpg")
    for name in ("voice.wav", "happy.wav", "sad.wav"):
        waveform, rate = make_voice(random.Random(name), transcript=True).audio
        soundfile.write(name, waveform, rate)
    write_video(Path("clip.mp4"), frames=[np.full((48, 48, 3), shade, np.uint8) for shade in range(0, 240, 30)])
    tiny = {"llava": CHECKPOINTS / "llava-onevision", "Audio": CHECKPOINTS / "audio-llama"}
    load = lensplug.load

    def of_the_hub(name: str, **options: Any) -> Any:
        assert options == {"device": "cuda", "dtype": "bfloat16"}
        return load(next(folder for part, folder in tiny.items() if part in name), device="cpu", dtype="float32")

    monkeypatch.setattr(lensplug, "load", of_the_hub)
    (tmp_path / "my-audio-llama").symlink_to(tiny["Audio"])


def test_every_block_runs_as_printed(at_the_readers):
    names: dict[str, Any] = {}
    run = 0
    for number, block in enumerate(BLOCKS, 1):
        if "ConfigFix" in block and not HOOKED:
            continue
        for words, make in AT_HAND.items():
            if words in block:
                names |= make(names)
        exec(compile(block, f"README.md, block {number}", "exec"), names)  # noqa: S102
        run += 1
    assert run >= len(BLOCKS) - 1 and Path("explorer.html").stat().st_size and Path("clip.html").stat().st_size
