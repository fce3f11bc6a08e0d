"""When the answer forms: the layer at which it becomes top, over 200 pictures, on the tiny LLaVA-OneVision.

python benchmarks/answers.py
"""

from __future__ import annotations

import random
from collections import Counter

from rich.console import Console
from rich.progress import track
from rich.table import Table

import lensplug
from lensplug import analysis
from lensplug.tiny.scenes import TOPICS, ask, draw_scene

PICTURES = 200


def main() -> None:
    lens = lensplug.tiny.llava_onevision()
    layers = lens.model.cfg.n_layers
    rng = random.Random(20_000)
    settled: dict[str, Counter[int]] = {topic: Counter() for topic in TOPICS}
    right: Counter[str] = Counter()
    for _ in track(range(PICTURES), description="pictures", console=Console(stderr=True)):
        scene = draw_scene(rng)
        for topic in TOPICS:
            question = ask(rng, scene, topic=topic, single_word=True)
            inputs = lens.prepare(question.prompt, images=[scene.image])
            logits, cache = lens.run_with_cache(inputs, names_filter=analysis.logit_lens.needs)
            result = analysis.logit_lens(cache)
            settled[topic][int(result.settled_layer[0, 0])] += 1
            right[topic] += result.target_texts[0][0] == question.answer
    table = Table(title=f"The layer after which the answer is, and stays, the top token ({PICTURES} pictures)")
    for column in ("question", "right", "embedding", *(f"layer {layer}" for layer in range(layers))):
        table.add_column(column, justify="right")
    for topic in TOPICS:
        counts = (str(settled[topic][layer]) for layer in range(-1, layers))
        table.add_row(topic, f"{right[topic] / PICTURES:.1%}", *counts)
    Console().print(table)


if __name__ == "__main__":
    main()
