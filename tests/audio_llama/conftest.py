"""A training of an audio-LLaMA, as it was left."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from support.audio_llamas import LARGE, WAVEFORM
from support.models import randomise, text_config
from support.trainings import ROWS, Projector, Training, lora

from lensplug.tiny.sound_model import build_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Base, acoustic model, two adapters, and the modules at the end of the training."""
    root = tmp_path_factory.mktemp("training")
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
    return root, tokenizer, training
