import random
from types import SimpleNamespace

import pytest

import lensplug
from lensplug import analysis
from lensplug.tiny.scenes import draw_scene


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
