import random
from types import SimpleNamespace

import pytest

import lensplug
from lensplug import analysis
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice


@pytest.fixture(scope="session")
def seen():
    """One picture, asked about and analysed on the tiny model."""
    lens = lensplug.tiny.llava_onevision()
    scene = draw_scene(random.Random(3), size=(96, 96), color="red")
    inputs = lens.prepare("What is the color? Answer single word.", images=[scene.image])
    logits, cache = lens.run_with_cache(inputs)
    return SimpleNamespace(
        lens=lens,
        scene=scene,
        inputs=inputs,
        logits=logits,
        cache=cache,
        heads=analysis.head_specialization(cache, inputs.modality),
        logit_lens=analysis.logit_lens(cache, positions=[-3, -2, -1]),
        rollout=analysis.attention_rollout(cache, rows=-1),
    )


@pytest.fixture(scope="session")
def heard():
    """One voice, asked about and analysed on the tiny model."""
    lens = lensplug.tiny.audio_llama()
    voice = make_voice(random.Random(3), emotion="happy", place="late", transcript=True)
    inputs = lens.prepare(voice.prompt("sound"), audio=[voice.audio])
    _, cache = lens.run_with_cache(inputs)
    return SimpleNamespace(
        lens=lens,
        voice=voice,
        inputs=inputs,
        cache=cache,
        heads=analysis.head_specialization(cache, inputs.modality),
        received=analysis.received_attention(cache, modality=inputs.modality, str_tokens=inputs.str_tokens),
    )
