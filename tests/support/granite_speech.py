"""A tiny Granite Speech with random weights and its real processor, whose spectrograms torchaudio need not make."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank
from transformers.models.granite_speech import feature_extraction_granite_speech as extraction

from lensplug.tiny.sound_model import build_tokenizer
from support.models import randomise, text_config

CHAT = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'audio' %}<|audio|>{% else %}{{ p['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


class MelSpectrogram(nn.Module):
    """As torchaudio computes it, of which the processor asks for nothing else."""

    def __init__(self, sample_rate: int, n_fft: int, win_length: int, hop_length: int, n_mels: int) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = {"n_fft": n_fft, "win_length": win_length, "hop_length": hop_length}
        filters = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, sample_rate / 2, sample_rate)
        self.filters = nn.Buffer(torch.from_numpy(filters).float())
        self.window = nn.Buffer(torch.hann_window(win_length))

    def forward(self, waveform: Tensor) -> Tensor:
        """`[sound sample]` to `[sound mel column]`."""
        spectrum = torch.stft(waveform, **self.sizes, window=self.window, return_complex=True).abs() ** 2
        return (spectrum.transpose(-1, -2) @ self.filters).transpose(-1, -2)


def granite_speech(plus: bool = False, *, seed: int = 1) -> tuple[Any, Any]:
    """A model and its processor; a window is 15 frames of 20 ms, of which three queries make positions."""
    if not hasattr(extraction, "torchaudio"):
        extraction.torchaudio = SimpleNamespace(transforms=SimpleNamespace(MelSpectrogram=MelSpectrogram))
        extraction.requires_backends = lambda *_: None
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<|audio|>"], special_tokens=True)
    name = "GraniteSpeechPlus" if plus else "GraniteSpeech"
    more = {"cat_hidden_layers": [1]} if plus else {}
    encoder = getattr(hf, f"{name}EncoderConfig")(
        hidden_dim=16, num_layers=2, num_heads=2, output_dim=8, context_size=50, **more,
    )  # fmt: skip
    query = hf.Blip2QFormerConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, cross_attention_frequency=1,
        encoder_hidden_size=32 if plus else 16, use_qformer_text_input=False,
    )  # fmt: skip
    config = getattr(hf, f"{name}Config")(
        encoder_config=encoder, projector_config=query, has_lora_adapter=False,
        text_config=text_config("Granite", vocab_size=len(tokenizer), max_position_embeddings=4096),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
    )  # fmt: skip
    processor = hf.GraniteSpeechProcessor(hf.GraniteSpeechFeatureExtractor(), tokenizer, chat_template=CHAT)
    return randomise(getattr(hf, f"{name}ForConditionalGeneration")(config), seed), processor


def listening_alone(model: Any) -> Any:
    """The model whose encoder's frames know of no other: without attention, and convolutions of one frame."""
    for layer in model.model.encoder.layers:
        nn.init.zeros_(layer.attn.to_out.weight)
        kernel = layer.conv.depth_conv.conv.weight
        middle = kernel[..., kernel.shape[-1] // 2].clone()
        nn.init.zeros_(kernel)
        with torch.no_grad():
            kernel[..., kernel.shape[-1] // 2] = middle
    return model
