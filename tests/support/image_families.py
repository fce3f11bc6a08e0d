"""One model of each image family with the views, patches and tiles of the large one, and everything else narrow."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import lensplug
from support import (
    cell_families,
    counted_families,
    further_image_families,
    more_image_families,
    newer_image_families,
    related_families,
)
from support.narrow import CHAT, NARROW, clip, text_config, tokenizer_with

NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def llava(strategy: str = "default", **image_options: Any) -> tuple[Any, Any]:
    """LLaVA 1.5: views of 336 px in patches of 14 px, cropped; "full" keeps the class token."""
    tokenizer = tokenizer_with()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = hf.LlavaConfig(
        vision_config=clip(336, 14), text_config=text_config(tokenizer), image_token_index=image_id,
        vision_feature_select_strategy=strategy,
    )  # fmt: skip
    options = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, **image_options}
    kind = hf.LlavaImageProcessor if "do_pad" in image_options else hf.CLIPImageProcessor
    processor = hf.LlavaProcessor(
        kind(**options), tokenizer, patch_size=14, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: the views of LLaVA 1.5 in five tilings."""
    tokenizer = tokenizer_with()
    config = hf.LlavaNextConfig(
        vision_config=clip(336, 14), text_config=text_config(tokenizer, "Mistral"), image_grid_pinpoints=NEXT_PINPOINTS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=NEXT_PINPOINTS
    )
    processor = hf.LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT,
    )  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision: views of 384 px in patches of 14 px, every tiling of the large model, anyres_max_9."""
    tokenizer = tokenizer_with()
    pinpoints = hf.LlavaOnevisionImageProcessor.image_grid_pinpoints
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(image_size=384, patch_size=14, vision_use_head=False, **NARROW),
        text_config=text_config(tokenizer, "Qwen2"), image_grid_pinpoints=pinpoints, vision_aspect_ratio="anyres_max_9",
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(), tokenizer, hf.LlavaOnevisionVideoProcessor(), num_image_tokens=729,
        vision_feature_select_strategy="full", chat_template=CHAT, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """InternVL3: views of 448 px in patches of 14 px, merged 2 x 2, up to 12 tiles and a thumbnail."""
    tokenizer = tokenizer_with(
        "<img>", "</img>", start_image_token="<img>", end_image_token="</img>", context_image_token="<image>",
        video_token="<video>",
    )  # fmt: skip
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(image_size=[448, 448], patch_size=[14, 14], **NARROW),
        text_config=text_config(tokenizer, "Qwen2"), image_token_id=tokenizer.context_image_token_id,
    )  # fmt: skip
    size = {"height": 448, "width": 448}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=size), tokenizer, hf.InternVLVideoProcessor(size=size), chat_template=CHAT
    )
    return hf.InternVLForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    """Idefics3: views of 364 px in patches of 14 px, merged 2 x 2, the longest edge scaled to 4 views."""
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = tokenizer_with("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places)
    processor = hf.Idefics3Processor(hf.Idefics3ImageProcessor(), tokenizer, image_seq_len=169, chat_template=CHAT)
    config = hf.Idefics3Config(
        vision_config=hf.models.idefics3.Idefics3VisionConfig(image_size=364, patch_size=14, **NARROW),
        text_config=text_config(tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2,
    )  # fmt: skip
    return hf.Idefics3ForConditionalGeneration(config), processor


BUILDERS = {
    "llava": llava,
    "llava-full": lambda: llava("full"),
    "llava-padded": lambda: llava(do_pad=True),
    "llava-squeezed": lambda: llava(size={"height": 336, "width": 336}, do_center_crop=False),
    "llava-next": llava_next,
    "llava-onevision": llava_onevision,
    "internvl": internvl,
    "idefics3": idefics3,
    **newer_image_families.BUILDERS,
    **more_image_families.BUILDERS,
    **counted_families.BUILDERS,
    **further_image_families.BUILDERS,
    **related_families.BUILDERS,
    **cell_families.BUILDERS,
}


@cache
def lens(name: str, *, attention: bool = True) -> lensplug.MultimodalLens:
    """The lens of a family, random weights; without attention no patch of a view knows of another."""
    torch.manual_seed(0)
    try:
        model, processor = {**BUILDERS, **more_image_families.WITHOUT_PLACES}[name]()
    except AttributeError as error:
        if getattr(error.obj, "__name__", "") != "transformers":
            raise
        pytest.skip(f"transformers {hf.__version__} has no {error.name}")
    for parameter in model.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):  # a projector that starts at zero tells nothing
            nn.init.normal_(parameter, std=0.2)
    if not attention:
        _silence_attention(model)
        if name.startswith(("got-ocr2", "fast-vlm")):
            _blend_evenly(model)
    return lensplug.wrap(model.eval(), processor, check=False)


def _silence_attention(model: Any) -> None:
    silent = 0
    whole = model if model.model is model.get_decoder() else model.model
    for tower in whole.children():
        if tower in (model.get_decoder(), model.get_output_embeddings()):
            continue
        for place, module in tower.named_modules():
            *parents, last = place.split(".")
            if (
                isinstance(module, nn.Linear)
                and last in OUTPUTS
                and any("att" in parent or parent == "token_mixer" for parent in parents)
            ):
                nn.init.zeros_(module.weight)
                silent += 1
        if hasattr(tower, "config"):  # multiplied by these zeros; half of the time was this
            tower.config._attn_implementation = "values as they are"
    assert silent and silent % NARROW["num_hidden_layers"] == 0


def _blend_evenly(model: nn.Module) -> None:
    """Convolutions that blend none but what their stride passes over, the nearer the more.

    Those of random weights see anything around as well as their middle, and further to one side than to the other.
    """
    for place, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and ".se." in place:  # a gate made of the mean over all of the view
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Conv2d) and module.kernel_size in ((3, 3), (7, 7)):
            taps = torch.zeros(module.kernel_size[0])
            middle = len(taps) // 2
            taps[middle - 1 : middle + 2] = torch.tensor([0.5, 1, 0.5] if module.stride == (2, 2) else [0.0, 1, 0])
            with torch.no_grad():
                module.weight.copy_(module.weight.sum(dim=(-2, -1), keepdim=True) * taps[:, None] * taps)


OUTPUTS = ("out_proj", "projection_layer", "o_proj", "proj")
"""What the last layer of an attention is called."""


def _values(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
    of_each_head = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)  # heads can share theirs
    return of_each_head.transpose(1, 2).contiguous(), None


hf.AttentionInterface.register("values as they are", _values)
