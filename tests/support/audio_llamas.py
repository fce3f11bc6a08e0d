"""Tiny audio-LLaMAs with random weights of large variance, one for each kind of encoder, and sounds for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf

from lensplug.audio_llama import AudioLlamaConfig, AudioLlamaForConditionalGeneration, AudioLlamaProcessor
from lensplug.tiny.sound_model import CHAT_TEMPLATE, build_tokenizer
from support.models import randomise, text_config

WAVEFORM: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 4), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "layerdrop": 0.0, "apply_spec_augment": False,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
WHISPER = {
    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 80,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "max_source_positions": 1500,
}  # fmt: skip

ENCODERS: dict[str, Any] = {
    "wav2vec2": lambda: hf.Wav2Vec2Config(**WAVEFORM, **LARGE),
    "wav2vec2-base": lambda: hf.Wav2Vec2Config(**WAVEFORM, **GROUP),
    "wav2vec2-adapter": lambda: hf.Wav2Vec2Config(**WAVEFORM, **LARGE, add_adapter=True, num_adapter_layers=1),
    "hubert": lambda: hf.HubertConfig(**WAVEFORM, **LARGE),
    "hubert-base": lambda: hf.HubertConfig(**WAVEFORM, **GROUP),
    "wavlm": lambda: hf.WavLMConfig(**WAVEFORM, **LARGE),
    "wavlm-base": lambda: hf.WavLMConfig(**WAVEFORM, **GROUP),
    "data2vec-audio": lambda: hf.Data2VecAudioConfig(**{**WAVEFORM, "num_conv_pos_embeddings": 2}),
    "unispeech": lambda: hf.UniSpeechConfig(**WAVEFORM, **LARGE),
    "unispeech-sat": lambda: hf.UniSpeechSatConfig(**WAVEFORM, **LARGE),
    "whisper": lambda: hf.WhisperConfig(**WHISPER),
}
"""Test id -> the encoder's configuration; "-base" is normalised over time in its first convolution."""


def audio_llama(encoder: str, text: str = "Llama", seed: int = 0, **changes: Any) -> tuple[Any, AudioLlamaProcessor]:
    """A model with random weights over a small decoder, and its processor."""
    tokenizer = build_tokenizer()
    config = AudioLlamaConfig(
        ENCODERS[encoder](),
        text_config(text, vocab_size=len(tokenizer)),
        audio_token_id=tokenizer.convert_tokens_to_ids("<audio>"),
        **changes,
    )
    extractor = (
        hf.WhisperFeatureExtractor(feature_size=80)
        if encoder == "whisper"
        else hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    )
    processor = AudioLlamaProcessor.of(config, extractor, tokenizer, chat_template=CHAT_TEMPLATE)
    return randomise(AudioLlamaForConditionalGeneration(config), seed), processor


def sound(seconds: float, seed: int = 0, rate: int = 16000) -> np.ndarray:
    """Random tones in noise, float32."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * time + p) for f, p in zip(generator.uniform(80, 3000, 4), range(4), strict=True))
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * generator.uniform(1, 4) * time)
    return (0.1 * tones * swell + 0.02 * generator.standard_normal(len(time))).astype(np.float32)


def sounds(*seconds: float) -> list[np.ndarray]:
    """One for each length."""
    return [sound(length, seed) for seed, length in enumerate(seconds)]


def processed(processor: Any, prompts: list[str], waveforms: list[np.ndarray]) -> dict[str, Any]:
    """What the processor returns for a batch."""
    return dict(processor(text=prompts, audio=waveforms, sampling_rate=16000))


def manual_vectors(frames: torch.Tensor, count: int) -> torch.Tensor:
    """`[frame width]` to `[count width]` as torch interpolates."""
    return torch.nn.functional.interpolate(frames.T[None], size=count, mode="linear", align_corners=True)[0].T
