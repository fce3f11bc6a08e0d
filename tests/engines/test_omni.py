"""The thinker of Qwen2.5-Omni, with its real processor: pictures, videos and sounds, alone and together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.exact import compared
from support.models import scene
from support.omni import thinker_with_processor, wrapped_with_processor
from support.qwen3_vl_media import frames

import lensplug

SOUND = (np.random.default_rng(0).normal(size=16000).astype("float32") * 0.1, 16000)
MEDIA: dict[str, dict[str, Any]] = {
    "image": {"images": [scene(40, 60)]},
    "video": {"videos": [frames(4, 0)]},
    "audio": {"audio": [SOUND]},
    "all": {"images": [scene(40, 60)], "videos": [frames(4, 0)], "audio": [SOUND]},
}


@pytest.mark.parametrize("media", MEDIA)
def test_it_is_hugging_faces(media):
    lens = wrapped_with_processor()
    inputs = lens.prepare("What is the color ?", **MEDIA[media])
    assert inputs.modality.names[1:] == ((media,) if media != "all" else ("image", "video", "audio"))
    assert inputs.decoder_inputs["position_ids"].shape == (3, 1, inputs.shape[1])
    assert compared(lens, inputs).is_rounding(), compared(lens, inputs)
    answer = lens.with_answer(inputs, "one two")
    assert lens.check(answer.inputs).agrees
    assert lens.check(answer.inputs).positions > inputs.shape[1]


def test_prompts_of_different_lengths():
    lens = wrapped_with_processor()
    inputs = lens.prepare(["What ?", "What is the color ?"], images=[[], [scene(40, 60)]], audio=[[SOUND], []])
    assert not bool(inputs.attention_mask.all())
    assert compared(lens, inputs).is_rounding(), compared(lens, inputs)


def test_bfloat16():
    model, processor = thinker_with_processor()
    lens = lensplug.wrap(model.to(torch.bfloat16), processor)
    report = lens.check(lens.prepare("What is the color ?", **MEDIA["all"]))
    assert report.agrees and report.argmax_agreement > 0.9
