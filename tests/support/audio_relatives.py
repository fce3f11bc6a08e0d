"""Tiny Voxtral, GLM-ASR, Qwen2-Audio, Audio and Music Flamingo with random weights, and their real processors.

Voxtral's processor writes prompts with Mistral's own tokenizer (mistral-common, which asks for an older numpy): here
its spectrograms are made by the real processor's code, its placeholders by hand, 375 for every 30 seconds.
`families/test_voxtral_processor.py` runs the whole real processor where mistral-common is installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import AddedToken
from transformers import WhisperFeatureExtractor

from lensplug.tiny.sound_model import build_tokenizer
from support.models import randomise, text_config

WHISPER = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 80}
TEMPLATE = (
    "{{% for m in messages %}}{{% for p in m['content'] %}}"
    "{{% if p['type'] == 'audio' %}}<start>{token}<stop>{{% else %}}{{{{ p['text'] }}}}{{% endif %}}"
    "{{% endfor %}}{{% endfor %}}"
)


def _tokenizer(token: str) -> Any:
    tokenizer = build_tokenizer()
    special = [AddedToken(text, special=True, normalized=False) for text in (token, "<start>", "<stop>")]
    tokenizer.add_tokens(special, special_tokens=True)
    return tokenizer


def _voxtral() -> tuple[Any, Any]:
    tokenizer = _tokenizer("<sound>")
    audio = hf.VoxtralEncoderConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_mel_bins=80
    )
    config = hf.VoxtralConfig(
        audio_config=audio,
        text_config=text_config("Llama", vocab_size=len(tokenizer), max_position_embeddings=4096, head_dim=12),
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    return hf.VoxtralForConditionalGeneration(config), HandMadeVoxtral(tokenizer)


def _glmasr() -> tuple[Any, Any]:
    tokenizer = _tokenizer("<sound>")
    audio = hf.GlmAsrEncoderConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_mel_bins=80
    )
    config = hf.GlmAsrConfig(
        audio_config=audio,
        text_config=text_config("Llama", vocab_size=len(tokenizer), max_position_embeddings=4096),
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    processor = hf.GlmAsrProcessor(
        WhisperFeatureExtractor(80), tokenizer, chat_template=TEMPLATE.format(token="<sound>"), audio_token="<sound>"
    )
    return hf.GlmAsrForConditionalGeneration(config), processor


def _qwen2_audio() -> tuple[Any, Any]:
    tokenizer = _tokenizer("<|AUDIO|>")
    config = hf.Qwen2AudioConfig(
        audio_config=hf.Qwen2AudioEncoderConfig(**WHISPER),
        text_config=text_config("Qwen2", vocab_size=len(tokenizer), max_position_embeddings=4096),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    processor = hf.Qwen2AudioProcessor(
        WhisperFeatureExtractor(80), tokenizer, chat_template=TEMPLATE.format(token="<|AUDIO|>")
    )
    return hf.Qwen2AudioForConditionalGeneration(config), processor


def _audioflamingo3() -> tuple[Any, Any]:
    tokenizer = _tokenizer("<sound>")
    audio = hf.AudioFlamingo3EncoderConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_mel_bins=80
    )
    config = hf.AudioFlamingo3Config(
        audio_config=audio,
        text_config=text_config("Qwen2", vocab_size=len(tokenizer), max_position_embeddings=4096),
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    processor = hf.AudioFlamingo3Processor(
        WhisperFeatureExtractor(80), tokenizer, chat_template=TEMPLATE.format(token="<sound>"), audio_token="<sound>"
    )
    return hf.AudioFlamingo3ForConditionalGeneration(config), processor


def _musicflamingo() -> tuple[Any, Any]:
    tokenizer = _tokenizer("<sound>")
    tokenizer.add_tokens(["<|sound_bos|>", "<|sound_eos|>"], special_tokens=True)
    sound, start, stop = (
        tokenizer.convert_tokens_to_ids(text) for text in ("<sound>", "<|sound_bos|>", "<|sound_eos|>")
    )
    audio = hf.AudioFlamingo3EncoderConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_mel_bins=80
    )
    config = hf.MusicFlamingoConfig(
        audio_config=audio,
        text_config=text_config("Qwen2", vocab_size=len(tokenizer), max_position_embeddings=4096),
        audio_token_id=sound, audio_bos_token_id=start, audio_eos_token_id=stop,
    )  # fmt: skip
    processor = hf.MusicFlamingoProcessor(
        WhisperFeatureExtractor(80), tokenizer, chat_template=TEMPLATE.format(token="<sound>"), audio_token="<sound>"
    )
    return hf.MusicFlamingoForConditionalGeneration(config), processor


RELATIVES = {
    "voxtral": _voxtral,
    "glmasr": _glmasr,
    "qwen2_audio": _qwen2_audio,
    "audioflamingo3": _audioflamingo3,
    "musicflamingo": _musicflamingo,
}
"""`config.model_type` -> an untrained model and its processor."""


def relative(name: str, seed: int = 0) -> tuple[Any, Any]:
    """A model with random weights, and its processor."""
    model, processor = RELATIVES[name]()
    return randomise(model, seed), processor


class HandMadeVoxtral:
    """In the place of VoxtralProcessor, whose tokenizer needs mistral-common."""

    audio_token = "<sound>"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.feature_extractor = WhisperFeatureExtractor(80)
        self.chat_template = TEMPLATE.format(token="<sound>")

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=False
        )

    def __call__(self, text: Any, audio: Any = None, **options: Any) -> dict[str, Any]:
        features, waiting = [], []
        for waveform in audio or []:
            kwargs = {"padding": True, "truncation": False, "pad_to_multiple_of": 480000, "return_tensors": "pt"}
            windows = hf.VoxtralProcessor._retrieve_input_features(
                self, [np.asarray(waveform)], 3000, sampling_rate=16000, **kwargs
            )
            features.append(windows)
            waiting.append(self.audio_token * (375 * len(windows)))
        texts = []
        for prompt in [text] if isinstance(text, str) else text:
            parts = prompt.split(self.audio_token)
            texts.append(parts[0] + "".join(waiting.pop(0) + part for part in parts[1:]))
        outputs = dict(self.tokenizer(texts, padding=True, return_tensors="pt"))
        return {**outputs, **({"input_features": torch.cat(features)} if features else {})}
