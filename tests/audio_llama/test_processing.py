"""The processor of audio-LLaMA: placeholders, padding, normalisation, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
import transformers as hf
from support.audio_llamas import ENCODERS, audio_llama, sound, sounds
from support.models import text_config

import lensplug
from lensplug.audio_llama import AudioLlamaConfig, AudioLlamaProcessor
from lensplug.tiny.sound_model import build_tokenizer


@pytest.fixture(scope="module")
def processor():
    return audio_llama("wav2vec2-base")[1]


def test_one_placeholder_becomes_ten(processor):
    outputs = processor(text="before <audio> after", audio=sound(0.4), sampling_rate=16000)
    ids = outputs["input_ids"][0].tolist()
    assert ids.count(processor.audio_token_id) == 10
    words = processor.tokenizer("before ")["input_ids"]
    assert ids[: len(words) + 10] == words + [processor.audio_token_id] * 10
    assert outputs["input_values"].shape == (1, 6400)


def test_sounds_are_normalised_over_themselves_and_not_their_padding(processor):
    """Although this feature extractor says return_attention_mask=False, as that of wav2vec2-base does."""
    waveforms = sounds(0.3, 0.6)
    outputs = processor(text=["<audio>", "words <audio>"], audio=waveforms, sampling_rate=16000)
    for waveform, values, mask in zip(waveforms, outputs["input_values"], outputs["audio_attention_mask"], strict=True):
        assert int(mask.sum()) == len(waveform) and bool(mask[: len(waveform)].all())
        expected = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
        assert np.allclose(values[: len(waveform)].numpy(), expected, atol=1e-5)
    assert outputs["attention_mask"][0, 0] == 0 and outputs["attention_mask"][1, 0] == 1, "padded at the left"


def test_whisper_features_are_the_extractors_own():
    processor = audio_llama("whisper")[1]
    waveform = sound(1.234)
    outputs = processor(text="<audio>", audio=[waveform], sampling_rate=16000)
    expected = processor.feature_extractor(waveform, sampling_rate=16000, return_tensors="pt")["input_features"]
    assert torch.equal(outputs["input_features"], expected)
    assert int(outputs["audio_attention_mask"].sum()) == -(-len(waveform) // 160)


@pytest.mark.parametrize("encoder", ["wav2vec2", "wav2vec2-adapter", "whisper"])
def test_frames_are_counted_as_the_encoder_counts(encoder):
    model, processor = audio_llama(encoder, frames_per_vector=1)
    for seconds in (0.1, 0.27, 0.5001, 1.0):
        outputs = processor(text="<audio>", audio=[sound(seconds)], sampling_rate=16000)
        given = outputs.get("input_values", outputs.get("input_features"))
        _, lengths = model.model.get_audio_frames(given, outputs["audio_attention_mask"])
        assert int((outputs["input_ids"] == processor.audio_token_id).sum()) == int(lengths)


def test_text_alone(processor):
    outputs = processor(text=["no sound", "no sound at all"])
    assert set(outputs) == {"input_ids", "attention_mask"}
    assert outputs["attention_mask"].tolist()[0][0] == 0


MEL = 30 * 16000 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"audio": [sound(0.3)]}, "sampling rate is missing: give sampling_rate=, 16000"),
        ({"audio": [sound(0.3)], "sampling_rate": 44100}, r"44100 Hz and the encoder takes 16000 Hz: resample"),
        ({"audio": [np.zeros(0, np.float32)], "sampling_rate": 16000}, "0 samples, too few"),
        ({"audio": [sound(0.005)], "sampling_rate": 16000}, "80 samples, too few for one frame"),
        ({"audio": [np.full(9000, np.nan, np.float32)], "sampling_rate": 16000}, "NaN or infinite"),
        ({"audio": [np.zeros(9000, np.int16)], "sampling_rate": 16000}, "a sound is int16, expected floats"),
        ({"audio": [np.zeros((2, 9000), np.float32)], "sampling_rate": 16000}, r"shape \[2, 9000\], expected"),
        ({"audio": sounds(0.3, 0.3), "sampling_rate": 16000}, r"2 sound\(s\) and 1 placeholder\(s\) '<audio>'"),
        ({}, r"0 sound\(s\) and 1 placeholder"),
        ({"text": "no place", "audio": [sound(0.3)], "sampling_rate": 16000}, r"1 sound\(s\) and 0 placeholder"),
        ({"text": None, "audio": [sound(0.3)]}, "there is no text"),
    ],
)
def test_refuses(processor, arguments, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        processor(**{"text": "<audio> words", **arguments})


def test_refuses_what_whisper_would_cut_off():
    processor = audio_llama("whisper")[1]
    with pytest.raises(lensplug.LensplugError, match=r"30.0 s long, and the encoder takes 30 s at most"):
        processor(text="<audio>", audio=[np.zeros(MEL, np.float32)], sampling_rate=16000)


def test_refuses_a_tokenizer_that_does_not_fit():
    tokenizer = build_tokenizer()
    config = AudioLlamaConfig(ENCODERS["wav2vec2"](), text_config("Llama"), audio_token_id=3)
    extractor = hf.Wav2Vec2FeatureExtractor()
    with pytest.raises(lensplug.LensplugError, match="'<audio>' is token .*, the configuration says 3"):
        AudioLlamaProcessor.of(config, extractor, tokenizer)
    with pytest.raises(lensplug.LensplugError, match="does not know '<noise>': add it"):
        AudioLlamaProcessor.of(config, extractor, tokenizer, audio_token="<noise>")


def test_transformers_own_chat_template_call(processor, tmp_path):
    """Hugging Face's way: it loads the file at the extractor's rate, and tells the processor."""
    soundfile.write(tmp_path / "a.wav", sound(0.4), 16000)
    content = [{"type": "audio", "path": str(tmp_path / "a.wav")}, {"type": "text", "text": "When?"}]
    try:
        outputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
        )
    except ImportError as error:  # older versions read sounds with librosa alone
        pytest.skip(str(error))
    lens = lensplug.wrap(audio_llama("wav2vec2-base")[0], processor)
    inputs = lens.prepare("When?", audio=[tmp_path / "a.wav"])
    assert torch.equal(outputs["input_ids"], inputs.tokens)
    assert torch.allclose(outputs["input_values"], inputs.model_inputs["input_values"], atol=1e-5)
