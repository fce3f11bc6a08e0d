"""Tiny Hugging Face models with random weights of large variance, and inputs for them.

Freshly initialised tiny models attend almost uniformly and their biases are zero, so that a core with a
forgotten bias, norm or rotation gives nearly the same logits. `randomise` draws weights under which
every part matters.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from lensplug.tiny.image_model import build_model, build_processor, build_tokenizer
from lensplug.tiny.scenes import draw_scene

VOCAB = 320
IMAGE_TOKEN = 300
QUESTION = "What is the color? Answer single word."


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Draw every parameter anew, from `seed` alone; the model, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    with torch.no_grad():
        for module in model.modules():
            is_norm = "Norm" in type(module).__name__
            for name, parameter in module.named_parameters(recurse=False):
                if is_norm:
                    parameter.copy_((name == "weight") + 0.3 * normal(parameter))
                elif isinstance(module, nn.Linear | nn.Conv2d) and name == "weight":
                    parameter.copy_(normal(parameter) * 1.5 / parameter[0].numel() ** 0.5)
                else:
                    parameter.copy_(normal(parameter) * (0.3 if name == "bias" else 1.0))
    return model.eval()


def reference_logits(model: PreTrainedModel, model_inputs: Mapping[str, Any]) -> Tensor:
    """What Hugging Face itself computes, with its own attention."""
    decoder: Any = model.get_decoder()
    assert decoder.config._attn_implementation == ("sdpa" if decoder._supports_sdpa else "eager")
    with torch.no_grad():
        return model(**model_inputs, use_cache=False).logits


def wrapped_logits(lens: Any, inputs: Any) -> Tensor:
    """What the TransformerLens model computes."""
    with torch.no_grad():
        return lens.model(inputs)


def largest_difference(first: Tensor, second: Tensor, attention_mask: Tensor | None = None) -> float:
    """The largest absolute difference, over attended positions only where a mask is given."""
    difference = (first - second).detach().abs()
    return float(difference.max() if attention_mask is None else difference[attention_mask.bool()].max())


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a fraction of the largest value expected."""
    return largest_difference(found, expected) / float(expected.abs().max())


MARKS = {"_capture_hf_cache", "_derived_position_ids_ok", "_block_alias_cache"}
"""What a bridge notes for itself when it has generated, or told its hooks, once."""


def hook_points(model: nn.Module) -> dict[str, Any]:
    """A TransformerLens model's, by name."""
    points: Any = model.hook_dict
    return points


def snapshot(model: nn.Module) -> dict[str, Any]:
    """What a TransformerLens model holds under every name, and every hook on every hook point."""
    attributes = {name: value for name, value in model.__dict__.items() if name not in MARKS}
    content = {name: dict(value) if isinstance(value, dict) else value for name, value in attributes.items()}
    hooks = {
        name: (list(point.fwd_hooks), list(point.bwd_hooks), list(point._forward_hooks))
        for name, point in hook_points(model).items()
    }
    return {"held": content, "modules": list(model._modules.items()), "hooks": hooks}


def three_prompts(lens):
    """For the trained image model: prompts of different lengths, with a square picture, a tall one, and none."""
    prompts = ["What is the color? Answer single word.", "What is the shape? Answer in a phrase.", "What?"]
    return lens.prepare(prompts, images=[[scene(96, 96)], [scene(48, 96, 1)], []])


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of the given size, different for each seed."""
    return draw_scene(random.Random(seed), size=(width, height)).image


SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}


def text_config(name: str, **changes: Any) -> Any:
    """A small configuration of Llama, Qwen2, Mistral or Qwen3."""
    return getattr(hf, f"{name}Config")(**{**SMALL, **changes})


TEXT_CORES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-llama3-rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": ("Llama", {"rope_parameters": LINEAR_ROPE}),
    "llama-wide-heads": ("Llama", {"head_dim": 20}),
    "llama-attention-bias": ("Llama", {"attention_bias": True}),
    "llama-gelu-eps": ("Llama", {"hidden_act": "gelu", "rms_norm_eps": 0.1}),
    "qwen2": ("Qwen2", {}),
    "qwen2-no-gqa": ("Qwen2", {"num_key_value_heads": 4}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window-some-layers": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 6}),
    "mistral-wide-heads": ("Mistral", {"head_dim": 20, "sliding_window": None}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-no-gqa-tied": ("Qwen3", {"num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3", {"attention_bias": True}),
}
"""Test id -> (architecture, what differs from `SMALL`)."""


def text_model(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A plain language model, `LlamaForCausalLM` for "Llama"; also any id of `TEXT_CORES`."""
    if name in TEXT_CORES:
        name, defaults = TEXT_CORES[name]
        changes = {**defaults, **changes}
    return randomise(getattr(hf, f"{name}ForCausalLM")(text_config(name, **changes)), seed)


def text_tokens(length: int = 24, batch: int = 1, seed: int = 0) -> Tensor:
    """Random token ids, none of them a placeholder."""
    return torch.randint(0, IMAGE_TOKEN, (batch, length), generator=torch.Generator().manual_seed(seed))


def llava_onevision(seed: int = 0) -> tuple[PreTrainedModel, Any]:
    """The untrained tiny LLaVA-OneVision and its real processor."""
    processor = build_processor()
    return randomise(build_model(processor), seed), processor


VIEW, PATCH = 32, 8
CLIP = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": VIEW, "patch_size": PATCH,
}  # fmt: skip


def llava(seed: int = 0) -> tuple[PreTrainedModel, Any]:
    """LLaVA: CLIP and a Llama whose heads are wider than hidden size / heads."""
    tokenizer = build_tokenizer()
    text = text_config("Llama", vocab_size=len(tokenizer), head_dim=12)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(**CLIP), text_config=text, image_token_index=image_token)
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": VIEW}, crop_size={"height": VIEW, "width": VIEW}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return randomise(hf.LlavaForConditionalGeneration(config), seed), processor


def llava_next(seed: int = 0, sliding_window: int | None = None) -> tuple[PreTrainedModel, Any]:
    """LLaVA-NeXT: CLIP in tiles and a Mistral."""
    tokenizer = build_tokenizer()
    text = text_config("Mistral", vocab_size=len(tokenizer), sliding_window=sliding_window)
    pinpoints = [[VIEW, 2 * VIEW], [2 * VIEW, VIEW], [2 * VIEW, 2 * VIEW]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**CLIP),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessor(
            size={"shortest_edge": VIEW}, crop_size={"height": VIEW, "width": VIEW}, image_grid_pinpoints=pinpoints
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return randomise(hf.LlavaNextForConditionalGeneration(config), seed), processor


def internvl(text: str, seed: int = 0) -> PreTrainedModel:
    """InternVL over Qwen2 or Qwen3; four positions an image."""
    vision = hf.InternVLVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=[VIEW, VIEW], patch_size=[PATCH, PATCH],
    )  # fmt: skip
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=text_config(text),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return randomise(hf.InternVLForConditionalGeneration(config), seed)


def idefics3(seed: int = 0) -> PreTrainedModel:
    """Idefics3 over Llama; four positions an image."""
    vision = hf.models.idefics3.Idefics3VisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=VIEW, patch_size=PATCH,
    )  # fmt: skip
    config = hf.Idefics3Config(
        image_token_id=IMAGE_TOKEN, vision_config=vision, text_config=text_config("Llama"), scale_factor=2
    )
    return randomise(hf.Idefics3ForConditionalGeneration(config), seed)


def four_positions_an_image(model: PreTrainedModel, n_images: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Hand-made inputs of InternVL and Idefics3: words, images of four positions between them, words."""
    generator = torch.Generator().manual_seed(seed)
    words = text_tokens(5 * (n_images + 1), seed=seed)[0].view(n_images + 1, 5)
    image = torch.full((4,), IMAGE_TOKEN)
    tokens = torch.cat([part for row in words[:-1] for part in (row, image)] + [words[-1]])[None]
    pixels = torch.randn(n_images, 3, VIEW, VIEW, generator=generator)
    if model.config.model_type == "idefics3":
        pixels = pixels[None]
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": pixels}


def processed(processor: Any, *sizes: tuple[int, int]) -> dict[str, Any]:
    """One prompt with an image of each size, run through a real processor."""
    images = [scene(width, height, seed) for seed, (width, height) in enumerate(sizes)]
    text = "What is the color? " + "<image> Answer " * len(images) + "single word."
    return dict(processor(text=text, images=images, return_tensors="pt"))


IMAGE_FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, dict[str, Any]]]] = {
    "llava": lambda: _with_processor(*llava()),
    "llava-next": lambda: _with_processor(*llava_next()),
    "llava-next-window": lambda: _with_processor(*llava_next(sliding_window=10)),
    "internvl-qwen2": lambda: _by_hand(internvl("Qwen2")),
    "internvl-qwen3": lambda: _by_hand(internvl("Qwen3")),
    "idefics3": lambda: _by_hand(idefics3()),
}
"""Test id -> a model and the inputs of one prompt with two images."""


def _with_processor(model: PreTrainedModel, processor: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    return model, processed(processor, (60, 44), (37, 90))


def _by_hand(model: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Any]]:
    return model, four_positions_an_image(model)
