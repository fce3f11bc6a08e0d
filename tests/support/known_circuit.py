"""A LLaVA with two layers whose circuit is made by hand: what a picture shows goes one known way into the answer.

Head 2 of layer 0 copies the fact (+1: red, -1: blue) from a position of the image to the word "color"; head 1 of layer
1 reads it from the last position, as that word's value, or by its key, and writes the answer. Other heads copy the fact
too, into channels or to positions that nothing reads. Embeddings are set by hand; MLPs give nothing. All numbers of the
two prompts have the same size, so that norms are the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import transformers as hf

import lensplug
from lensplug import MultimodalInput, MultimodalLens
from lensplug.engines import EngineName
from lensplug.positions.tokens import single_token
from lensplug.tiny.image_model import build_tokenizer
from support.models import CLIP, PATCH, VIEW, scene, text_config

COPIES, READS = (0, 2), (1, 1)
"""The two heads, (layer, head)."""
CONSTANT, START, FACT, IMAGE, WORD, LAST, COPIED, ANSWER, UNREAD = range(9)
"""Channels of the stream."""
SHARP = 12.0
"""Weights of queries and keys: attention is all or nothing."""
D_HEAD, UNTURNED, AT_REST = 16, 7, 6
"""These dimensions of a head are hardly turned by rotary embeddings of so large a base: what a head looks for, and the
first position, which it looks at where it finds nothing."""


def known_circuit(
    engine: EngineName, read_by: Literal["k", "v"]
) -> tuple[MultimodalLens, MultimodalInput, MultimodalInput]:
    """The lens, and its inputs with a red and with a blue picture.

    Args:
        engine: Which makes the model.
        read_by: Whether head 1 of layer 1 reads the fact as a value, or by looking (a key) where it is red.
    """
    tokenizer = build_tokenizer()
    red, blue = (single_token(word, tokenizer) for word in ("Red", "Blue"))
    text = text_config(
        "Llama", vocab_size=len(tokenizer), hidden_size=32, head_dim=D_HEAD, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**CLIP), text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": VIEW}, crop_size={"height": VIEW, "width": VIEW}), tokenizer,
        patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    model = hf.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.get_decoder().layers.parameters():
            if parameter.ndim == 2:
                parameter.zero_()
        first, second = (layer.self_attn for layer in model.get_decoder().layers)
        # Shared keys and values: of heads 0 and 1, and of heads 2 and 3.
        _keys_and_values(first, 1, key=IMAGE, value=FACT)
        _keys_and_values(first, 0, key=IMAGE, value=FACT)
        _head(first, COPIES[1], query=WORD, writes=COPIED)
        _head(first, 0, query=WORD, writes=UNREAD)  # the right place, an unread channel
        # The right channel, at a position that nothing looks at; a key there would be seen.
        _head(first, 1, query=LAST, writes=COPIED if read_by == "v" else UNREAD)
        _head(first, 3, query=LAST, writes=UNREAD + 1)
        _keys_and_values(second, 0, key=WORD if read_by == "v" else COPIED, value=COPIED if read_by == "v" else WORD)
        _keys_and_values(second, 1, key=WORD, value=COPIED)
        _head(second, READS[1], query=LAST, writes=ANSWER)
        _head(second, 0, query=WORD, writes=ANSWER)  # answers at a position that is not read
        _head(second, 2, query=LAST, writes=UNREAD + 2)
        unembedding = model.get_output_embeddings().weight.zero_()
        unembedding[red, ANSWER], unembedding[blue, ANSWER] = 1, -1
    lens = lensplug.wrap(model, processor, engine=engine, check=False)
    inputs = lens.encode(
        processor(text="<image> What is the color? Answer single word.", images=[scene(40, 40)], return_tensors="pt")
    )
    word = single_token(" color", tokenizer)
    return lens, _with_fact(inputs, word, 1.0), _with_fact(inputs, word, -1.0)


def _keys_and_values(attention: Any, group: int, *, key: int, value: int) -> None:
    attention.k_proj.weight[group * D_HEAD + UNTURNED, key] = SHARP
    attention.k_proj.weight[group * D_HEAD + AT_REST, START] = SHARP / 4
    attention.v_proj.weight[group * D_HEAD, value] = 1


def _head(attention: Any, head: int, *, query: int, writes: int) -> None:
    attention.q_proj.weight[head * D_HEAD + UNTURNED, query] = SHARP
    attention.q_proj.weight[head * D_HEAD + AT_REST, CONSTANT] = SHARP
    attention.o_proj.weight[writes, head * D_HEAD] = 1


def _with_fact(inputs: MultimodalInput, word: int, fact: float) -> MultimodalInput:
    embeds = torch.zeros_like(inputs.embeds)
    embeds[..., CONSTANT] = 1
    at_image = int(inputs.modality.mask("image")[0].nonzero()[3])
    embeds[0, 0, START] = 1
    embeds[0, at_image, IMAGE] = 1
    embeds[0, at_image, FACT] = fact
    embeds[0, inputs.tokens[0] == word, WORD] = 1
    embeds[0, -1, LAST] = 1
    return replace(inputs, embeds=embeds)
