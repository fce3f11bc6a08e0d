"""What a training of an audio-LLaMA leaves, made here with random weights, and its modules put together by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import torch
import transformers as hf
from torch import nn

from lensplug.audio_llama.convert import convert
from lensplug.tiny.sound_model import build_tokenizer
from support.audio_llamas import LARGE, WAVEFORM, manual_vectors
from support.models import randomise, text_config

ROWS = 528
"""The tokenizer's 520 tokens and some more, a multiple of 8."""


class Projector(nn.Module):
    """As its training wrote it."""

    def __init__(self) -> None:
        super().__init__()
        self.proj1 = nn.Linear(32, 32)
        self.norm = hf.models.llama.modeling_llama.LlamaRMSNorm(32)
        self.proj2 = nn.Linear(32, 32)

    def forward(self, x):
        return self.proj2(self.norm(nn.functional.silu(self.proj1(x))))


class Training(nn.Module):
    """The modules as they stood at the end of a training, the last adapter not merged."""

    def __init__(self, llama, wave2vec2, projector) -> None:
        super().__init__()
        self.llama, self.wave2vec2, self.projector = llama, wave2vec2, projector

    @torch.no_grad()
    def logits(self, tokenizer, prompts, waveforms):
        """Prompts with one sound each, padded on the left, everything written out."""
        embed, rows = self.llama.get_input_embeddings(), []
        dtype = self.wave2vec2.dtype
        for prompt, waveform in zip(prompts, waveforms, strict=True):
            normed = torch.from_numpy((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7))[None].to(dtype)
            vectors = self.projector(manual_vectors(self.wave2vec2(normed).last_hidden_state[0], 10))
            before, after = (tokenizer(part, return_tensors="pt")["input_ids"][0] for part in prompt.split("<audio>"))
            rows.append(torch.cat([embed(before.long()), vectors, embed(after.long())]))
        longest = max(map(len, rows))
        padded = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        mask = torch.stack([torch.tensor([0] * (longest - len(row)) + [1] * len(row)) for row in rows])
        return self.llama(inputs_embeds=padded, attention_mask=mask).logits, mask


def lora(model, seed, **changes):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **changes)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return adapted.eval()


def left_by_a_training(root: Path):
    """Base, acoustic model, two adapters and a checkpoint, written to a folder; the tokenizer, and the modules."""
    tokenizer = build_tokenizer()
    base = randomise(hf.LlamaForCausalLM(text_config("Llama", vocab_size=512)))
    base.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    wave2vec2 = randomise(hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WAVEFORM, **LARGE)), 1)
    wave2vec2.save_pretrained(root / "acoustic")
    hf.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / "acoustic")
    base.resize_token_embeddings(ROWS, mean_resizing=False)
    randomise(base.get_input_embeddings(), 5)
    base.name_or_path = "somewhere/else/base"
    text_only = lora(base, 2)
    text_only.save_pretrained(root / "text", save_embedding_layers=False)
    multimodal = lora(text_only.merge_and_unload(), 3)
    multimodal.save_pretrained(root / "multimodal", save_embedding_layers=False)
    generator = torch.Generator().manual_seed(4)
    for name, weight in multimodal.named_parameters():  # trained on, after the folder was written
        if "lora_" in name:
            weight.data.add_(0.2 * torch.randn(weight.shape, generator=generator))
    projector = randomise(Projector(), 6)
    randomise(wave2vec2, 7)
    training = Training(multimodal, wave2vec2, projector).eval()
    torch.save(training.state_dict(), root / "best_model.pth")
    return tokenizer, training


PROMPTS = ["we won <audio> the game", "<audio> today"]


def checkpoint(root, name, change):
    state = torch.load(root / "best_model.pth", weights_only=True)
    torch.save(change(state), root / name)
    return root / name


def run(root, path, out, **options):
    arguments = {"adapters": [root / "text", root / "multimodal"], **options}
    return convert(root / "base", root / "acoustic", path, out, **arguments)


def plain(state):
    """The language model's own names, its adapter merged by hand: W + (alpha / r) B A."""
    merged = {}
    for name, value in state.items():
        if "lora_" in name:
            continue
        if name.endswith("base_layer.weight"):
            stem = name.removesuffix("base_layer.weight")
            value = value + 2 * state[f"{stem}lora_B.default.weight"] @ state[f"{stem}lora_A.default.weight"]
        merged[name.replace("base_model.model.", "").replace("base_layer.", "")] = value
    return merged


def without(part):
    return lambda state: {name: value for name, value in state.items() if part not in name}


def adapter_of(root: Path, folder: Path, **changes) -> Path:
    """A copy of the text adapter, its configuration changed."""
    folder.mkdir()
    config = json.loads((root / "text" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    (folder / "adapter_model.safetensors").write_bytes((root / "text" / "adapter_model.safetensors").read_bytes())
    return folder


def renamed(old, new):
    return lambda state: {name.replace(old, new): value for name, value in state.items()}


def mixed(state):
    return {name: value.half() if name.startswith("projector") else value for name, value in state.items()}
