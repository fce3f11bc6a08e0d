"""The timeline of Qwen3-ASR: the encoder's own number of positions, clicks heard when it says, no second unheard."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from support.audio_llamas import sound
from support.models import randomise, text_config

import lensplug
from lensplug.families.qwen3_asr import timeline
from lensplug.tiny.sound_model import build_tokenizer

CHAT = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'audio' %}<sound>{% else %}{{ p['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


@cache
def lens() -> Any:
    """A small one, random; the encoder's attention is weak, its convolutions the same in both ways."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<sound>", "<start>", "<stop>"], special_tokens=True)
    tokenizer.audio_token, tokenizer.audio_bos_token, tokenizer.audio_eos_token = "<sound>", "<start>", "<stop>"
    audio = hf.models.qwen3_asr.Qwen3ASREncoderConfig(
        num_mel_bins=80, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=16, output_dim=32,
        downsample_hidden_size=8,
    )  # fmt: skip
    config = hf.Qwen3ASRConfig(
        audio_config=audio, text_config=text_config("Qwen3", vocab_size=len(tokenizer), max_position_embeddings=4096),
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"), eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    processor = hf.Qwen3ASRProcessor(hf.Qwen3ASRFeatureExtractor(feature_size=80), tokenizer, chat_template=CHAT)
    model = randomise(hf.Qwen3ASRForConditionalGeneration(config), 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "audio_tower" in name and "out_proj" in name:
                weight.mul_(0.02)
            elif "conv2d" in name and weight.ndim == 4:
                weight.copy_((weight + weight.flip(-1)) / 2)
    return lensplug.wrap(model, processor, check=False)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.99, 1.0, 1.01, 2.5, 35.3])
def test_every_second_is_heard_by_positions_that_tile_it(seconds):
    modality = lens().prepare("when?", audio=[(sound(seconds), 16000)]).modality
    line = modality.audio_timeline()
    assert len(line) == len(modality.audio_positions())
    assert line.duration_s == pytest.approx(seconds) and line.heard_s is None
    assert float(line.start_s[0]) == 0 and torch.allclose(line.end_s[:-1], line.start_s[1:], atol=1e-5)
    assert float(line.end_s[-1]) > max(seconds, 0.5) - 0.04
    assert bool(line.padding.any()) == (seconds < 0.4)
    assert bool(((line.end_s - line.start_s) < 0.09).all())


def test_sounds_of_a_batch_have_timelines_of_their_own_and_other_sounds_are_refused():
    given = [[(sound(1.3), 16000)], [(sound(2.7), 16000)]]
    inputs = lens().prepare(["when?", "how?"], audio=given)
    assert [inputs.modality.audio_timeline(0, row).duration_s for row in (0, 1)] == pytest.approx([1.3, 2.7])
    outputs = {key: value for key, value in inputs.model_inputs.items()}
    with pytest.raises(lensplug.LensplugError, match="is 2.70 s long, and the processor saw one of 1.30 s"):
        lens().encode(outputs, audio=given[::-1])
    unknown = lens().encode(outputs).modality
    assert [unknown.audio_timeline(0, row).duration_s for row in (0, 1)] == pytest.approx([1.3, 2.7])


def test_a_change_moves_the_position_that_the_timeline_names():
    waveform, exact = sound(4.0), 0
    before = lens().prepare("when?", audio=[(waveform, 16000)])
    line, at = before.modality.audio_timeline(), before.modality.audio_positions()
    for named in (3, 12, 13, 25, 26, 40):
        first, last = (round(float(edge[named]) * 16000) for edge in (line.start_s, line.end_s))
        changed = waveform.copy()
        changed[first:last] = 0.05 * np.random.default_rng(named).standard_normal(last - first)
        after = lens().prepare("when?", audio=[(changed, 16000)])
        found = int((after.embeds - before.embeds)[0, at].norm(dim=-1).argmax())
        exact += found == named
        assert abs(found - named) <= 1
    assert exact >= 5


def test_positions_are_as_many_as_transformers_counts():
    columns = torch.arange(1, 1000, 7)
    counted = lens().processor._get_audio_token_length(columns)
    assert [len(timeline(int(count), 100)) for count in columns] == counted.tolist()
