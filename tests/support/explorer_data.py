"""What the explorer takes, built without a model: random numbers of any size, over tiles with newlines."""

from __future__ import annotations

import torch
from PIL import Image

from lensplug.analysis import AttentionFrom, LogitLens
from lensplug.analysis.provenance import Provenance
from lensplug.geometry import ImageGrid
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.modality_map import ModalityMap

WORDS = ("the", " red", " circle", "\n", " of", " left", " 絵", "</s>", " blue", " 7", " square", "<|im_end|>")


def grid_of(side: int, across: int, down: int, width: int, height: int, *, newlines: bool = True) -> ImageGrid:
    """A base view of side x side patches, then tiles of as many, row by row of the whole, each row with a newline."""

    def patches(columns: int, rows: int) -> list[list[list[float]]]:
        dx, dy = width / columns, height / rows
        return [[[x * dx, y * dy, (x + 1) * dx, (y + 1) * dy] for x in range(columns)] for y in range(rows)]

    boxes = [box for row in patches(side, side) for box in row]
    view, newline = [0] * len(boxes), [False] * len(boxes)
    for y, row in enumerate(patches(side * across, side * down)):
        tiles = [1 + y // side * across + x // side for x in range(len(row))]
        boxes += row + [[float("nan")] * 4] * newlines
        view += tiles + [tiles[-1]] * newlines
        newline += [False] * len(row) + [True] * newlines
    return ImageGrid(torch.tensor(boxes), torch.tensor(view), torch.tensor(newline), width, height)


def provenance(analysis: str) -> Provenance:
    return Provenance(analysis, "random numbers", "float32", "as they came", {})


def inputs_of(grid: ImageGrid, before: list[str], after: list[str], answer: list[str]) -> MultimodalInput:
    """Words, the picture, words, an answer."""
    texts = [*before, *["<image>"] * len(grid), *after, *answer]
    prompt = len(texts) - len(answer)
    tokens = torch.ones(1, len(texts), dtype=torch.long)
    tokens[0, len(before) : len(before) + len(grid)] = 2
    modality = ModalityMap.build(
        tokens[:, :prompt], torch.ones(1, prompt, dtype=torch.long), placeholder_ids={"image": 2}, grids={(0, 0): grid}
    ).appended(torch.ones(1, len(answer), dtype=torch.bool))
    return MultimodalInput(torch.zeros(1, len(texts), 1), tokens, torch.ones_like(tokens), modality, [texts])


def said_of(positions: torch.Tensor, layers: int, *, top_k: int, vocabulary: int, text, seed: int = 0) -> LogitLens:
    """Random top tokens and probabilities."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, layers + 1, len(positions), top_k)
    ids = torch.randint(0, vocabulary, shape, generator=generator)
    probabilities = torch.rand(*shape[:-1], top_k + 1, generator=generator)
    probabilities = (probabilities / probabilities.sum(-1, keepdim=True))[..., :top_k].sort(-1, descending=True).values
    measure, followed = torch.zeros(shape[:-1]), torch.zeros(1, len(positions), dtype=torch.long)
    texts = [[[[text(token) for token in k] for k in at_position] for at_position in entry] for entry in ids.tolist()]
    return LogitLens(
        top_tokens=ids, top_probabilities=probabilities, target=followed, rank=measure.long(), log_probability=measure,
        entropy=measure, kl_to_last=measure, positions=positions[None], top_texts=texts,
        target_texts=[[""] * len(positions)], length=positions.max()[None] + 1, provenance=provenance("logit_lens"),
    )  # fmt: skip


def random_results(
    grid: ImageGrid, *, layers: int, heads: int, answer: list[str], kind: str = "uniform", top_k: int = 5,
    vocabulary: int = 150_000, text=lambda one: f" w{one:x}", seed: int = 0,
) -> tuple[LogitLens, AttentionFrom, MultimodalInput, Image.Image]:  # fmt: skip
    """A logit lens, attention from each answer token, inputs and a picture; "uniform" attention packs worst."""
    inputs = inputs_of(grid, ["<|user|>", "\n"], [" What", " is", " this", "?", "<|assistant|>"], answer)
    positions = inputs.modality.image_positions()
    queries = torch.arange(inputs.tokens.shape[1] - len(answer) - 1, inputs.tokens.shape[1] - 1)[None]
    generator = torch.Generator().manual_seed(seed)
    shape = (1, layers, heads, len(answer), inputs.tokens.shape[1])
    values = torch.rand(shape, generator=generator)
    if kind == "peaked":  # as trained models do: most on few, a first position that holds a third
        values = (1.5 * torch.randn(shape, generator=generator)).exp()
        values[..., 0] = values.sum(-1) / 2
    values = values * (torch.arange(shape[-1]) <= queries[0][:, None])
    attention = AttentionFrom(values / values.sum(-1, keepdim=True), queries, provenance("attention_from"))
    logit_lens = said_of(positions, layers, top_k=top_k, vocabulary=vocabulary, text=text, seed=seed)
    noise = torch.randint(0, 256, (48, 48, 3), generator=generator, dtype=torch.uint8).numpy()
    return (
        logit_lens,
        attention,
        inputs,
        Image.fromarray(noise).resize((grid.width, grid.height), Image.Resampling.BICUBIC),
    )
