"""Voxtral with its real processor, where mistral-common is installed; its tokenizer is made here, of single bytes.

The other tests write Voxtral's placeholders by hand (`audio_relatives.HandMadeVoxtral`): these say that the hand is
right. mistral-common is no dependency of the tests, because it asks for an older numpy.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
import soundfile
import torch
from support.audio_llamas import sound
from support.models import largest_difference, randomise, reference_logits, text_config, wrapped_logits
from transformers import (
    VoxtralConfig,
    VoxtralEncoderConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)

import lensplug

pytest.importorskip("mistral_common", reason="Voxtral's tokenizer: pip install mistral-common")

SPECIAL = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]",
}  # fmt: skip
"""Voxtral's own ids."""


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    from transformers.tokenization_mistral_common import MistralCommonBackend

    special = [{"rank": id, "token_str": SPECIAL.get(id, f"<special {id}>"), "is_control": True} for id in range(35)]
    vocab = [{"rank": b, "token_bytes": base64.b64encode(bytes([b])).decode(), "token_str": None} for b in range(256)]
    spectrogram = {"num_mel_bins": 80, "hop_length": 160, "window_size": 400}
    path = tmp_path_factory.mktemp("voxtral") / "tekken.json"
    path.write_text(
        json.dumps(
            {
                "config": {
                    "pattern": r"\p{L}+| ?[^\s\p{L}]+|\s+",
                    "num_vocab_tokens": 256,
                    "default_vocab_size": 256 + len(special),
                    "default_num_special_tokens": len(special),
                    "version": "v7",
                },
                "vocab": vocab,
                "special_tokens": special,
                "audio": {
                    "sampling_rate": 16000,
                    "frame_rate": 12.5,
                    "chunk_length_s": 30.0,
                    "audio_encoding_config": spectrogram,
                },
            }
        )
    )
    return VoxtralProcessor(WhisperFeatureExtractor(80), MistralCommonBackend(tokenizer_path=path))


@pytest.fixture(scope="module")
def lens(processor):
    audio = VoxtralEncoderConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_mel_bins=80
    )
    text = text_config("Llama", vocab_size=291, max_position_embeddings=4096, head_dim=12)
    config = VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=processor.audio_token_id)
    return lensplug.wrap(randomise(VoxtralForConditionalGeneration(config), 0), processor, check=False)


def turn(text: str, *seconds: float) -> list[dict[str, Any]]:
    """A user's turn with sounds of these lengths before the text."""
    content: list[dict[str, str]] = []
    for seed, length in enumerate(seconds):
        file = io.BytesIO()
        soundfile.write(file, sound(length, seed), 16000, format="WAV", subtype="FLOAT")
        content.append({"type": "audio", "base64": base64.b64encode(file.getvalue()).decode()})
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


CASES: dict[str, list[tuple[float, ...]]] = {
    "one sound": [(0.7,)],
    "two sounds": [(0.7, 1.1)],
    "a batch": [(0.7,), (1.2,)],
    "over 30 s, and none": [(1.0, 30.0, 31.0), ()],
    "edges of windows": [(29.99, 60.0), (60.01,)],
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_positions_with_the_real_processor(lens, processor, name):
    batch = CASES[name]
    outputs = processor.apply_chat_template(
        [turn("which?" + example * " and", *own) for example, own in enumerate(batch)]
    )
    inputs = lens.encode(outputs)
    reference = reference_logits(lens.hf_model, inputs.model_inputs)
    assert largest_difference(wrapped_logits(lens, inputs), reference, inputs.attention_mask) < 1e-4
    windows = {(row, i): -int(-length // 30) for row, own in enumerate(batch) for i, length in enumerate(own)}
    lines = inputs.modality.timelines
    assert {key: len(line) for key, line in lines.items()} == {key: 375 * count for key, count in windows.items()}
    assert {key: float(line.end_s[-1]) for key, line in lines.items()} == {key: 30.0 * n for key, n in windows.items()}
    assert torch.equal(inputs.modality.mask("audio"), inputs.tokens == processor.audio_token_id)


def test_prepare_puts_sounds_into_the_turn(lens, processor):
    inputs = lens.prepare(["which?", "and?"], audio=[[(sound(0.7), 16000), (sound(31.0, 1), 16000)], []])
    again = lens.encode(processor.apply_chat_template([turn("which?", 0.7, 31.0), turn("and?")]))
    assert torch.equal(inputs.embeds, again.embeds) and torch.equal(inputs.tokens, again.tokens)
    assert [line.duration_s for line in inputs.modality.timelines.values()] == [0.7, 31.0]
    with pytest.raises(lensplug.LensplugError, match="takes sounds in its chat template only"):
        lens.prepare("which?", audio=[(sound(0.7), 16000)], chat_template=False)
