"""The language core of a Hugging Face model: its decoder, its head and the configuration of its text.

In transformers 5 every multimodal model names these parts the same way, so nothing here is specific to
one family. What cannot be read exactly by a TransformerLens model is refused here by name and reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lensplug.errors import LensplugError
from lensplug.hf.refusals import decoder_and_head
from lensplug.patches.bridge.own_layers import own_layers
from lensplug.patches.core_parts import Asked, CoreParts, has_three_part_positions
from lensplug.patches.modules import every_module
from lensplug.patches.placement import device_of, is_loaded, is_placed
from lensplug.provenance.public_names import public_name

PLACEHOLDERS = ("image", "video", "audio")

BESIDE = {
    "gemma3_text": ("attention_mask",),
    "qwen3_vl_text": ("position_ids", "deepstack"),
    "qwen3_vl_moe_text": ("position_ids", "deepstack"),
}
"""Text cores whose model gives them more than embeddings and padding, by `model_type`: under which names.

Three-part positions, and attention that is bidirectional throughout, are told by the configuration."""
WHY_BESIDE = {
    "attention_mask": (
        "its attention is bidirectional over the image (in PaliGemma over the whole prompt), which a causal core cannot"
        " express"
    ),
    "position_ids": "its rotary positions have three parts (time, height, width)",
    "deepstack": "it adds image features to the residual stream between blocks",
    "per_layer_inputs": "its layers read a second embedding of each word",
}
"""What each of these names says of a core."""


@dataclass(frozen=True)
class LanguageCore(CoreParts):
    """The language core of a model: decoder and head, with the placeholder tokens of media."""

    name: str
    """Name of the full model: on the hub, else of its folder, else of its class."""
    placeholder_ids: dict[str, int]
    """Modality -> the token id that its embeddings replace."""
    n_deepstack: int = 0
    """How many of the first layers add features of the image to the stream, at the end of each."""
    asked: Asked | None = field(default=None, compare=False, repr=False)
    """What its model said of a core that no table knows."""

    @classmethod
    def of(cls, hf_model: Any) -> LanguageCore:
        """Find the core of a Hugging Face model.

        Raises:
            LensplugError: If the model has no decoder or head of its own, or a core that cannot be
                wrapped exactly.
        """
        name = type(hf_model).__name__
        decoder, head = decoder_and_head(hf_model)
        text_config = hf_model.config.get_text_config(decoder=True)
        _refuse_special_weights(name, decoder, head)
        ids = {kind: _placeholder_id(hf_model.config, kind) for kind in PLACEHOLDERS}
        if ids["video"] == ids["image"]:
            ids["video"] = None  # Molmo 2's frames stand where images do
        placeholder_ids = {kind: token for kind, token in ids.items() if token is not None}
        return cls(
            decoder, head, text_config, name_of(hf_model), placeholder_ids, layers_with_features(hf_model.config)
        )

    @property
    def beside(self) -> tuple[str, ...]:
        """The names of what the model gives its decoder besides embeddings and padding mask.

        "attention_mask": one of its own, and not a row for each example; "position_ids": positions of several parts;
        "deepstack": features that the first layers add to the stream; "per_layer_inputs": a second embedding of each
        word, for every layer.
        """
        if self.asked is not None:
            return self.asked.beside
        if self.sees_whole_prompt:
            return ("attention_mask",)
        positions = ("position_ids",) if has_three_part_positions(self.decoder) else ()
        return BESIDE.get(self.text_config.model_type, positions)

    @property
    def sees_whole_prompt(self) -> bool:
        """Whether every position of a prompt sees the whole prompt, words too, and only an answer is causal."""
        return getattr(self.text_config, "use_bidirectional_attention", None) is True

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.decoder.embed_tokens.weight.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embeddings and the residual stream: that of the weights, unless these are quantised."""
        dtype: torch.dtype = self.decoder.embed_tokens.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where embeddings go in: where the weights are, unless these are split or offloaded."""
        return device_of(self.decoder.embed_tokens)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where the core computes, in the order of its parts: several where `device_map` has split it."""
        parts = [part for part in every_module(self.decoder, self.head) if any(True for _ in part.parameters(False))]
        return tuple(dict.fromkeys(device_of(part) for part in parts))


def layers_with_features(config: Any) -> int:
    """How many of the first layers add features of the image to the stream (Qwen3-VL)."""
    return len(getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", ()))


def name_of(hf_model: Any) -> str:
    """The name of a model in results: its name on the hub, its folder's name, or its class."""
    return public_name(str(getattr(hf_model.config, "_name_or_path", "") or type(hf_model).__name__))


def _placeholder_id(config: Any, kind: str) -> int | None:
    # Phi-4-multimodal names it in the part of its configuration that is the medium's.
    part = getattr(config, {"image": "vision_config", "audio": "audio_config"}.get(kind, ""), None)
    for place in (config, part):
        for name in (f"{kind}_token_id", f"{kind}_token_index"):
            token = getattr(place, name, None)
            if token is not None:
                return int(token)
    return None


def _refuse_special_weights(name: str, decoder: nn.Module, head: nn.Module) -> None:
    """Weights that no engine computes with; quantised, split and adapted ones are the bridge's."""
    if not hasattr(head, "out_features"):
        raise LensplugError(f"the head of {name} is a {type(head).__name__}, expected a linear layer.")
    layers = [*own_layers(decoder), *own_layers(head)]
    inside = {part for layer in layers for part in layer.modules()}
    parts = every_module(decoder, head)
    plain = [p for part in parts if part not in inside for p in part._parameters.values() if p is not None]
    dtypes = {p.dtype for p in plain}
    if len(dtypes) > 1:
        raise LensplugError(
            f"the core of {name} has weights of more than one dtype ({', '.join(sorted(map(str, dtypes)))}) beside its"
            " quantised layers: load it with one dtype, from_pretrained(..., dtype=...)."
        )
    devices = {p.device for part in parts if not is_placed(part) for p in part._parameters.values() if p is not None}
    if len(devices) > 1 and not any(is_placed(part) for part in parts):
        raise LensplugError(
            f"the core of {name} has weights of more than one device ({', '.join(sorted(map(str, devices)))}), and"
            " nothing that moves activations between them: split it with from_pretrained(..., device_map=...)."
        )
    if any(p.is_inference() for part in parts for p in part._parameters.values() if p is not None):
        raise LensplugError(
            f"the weights of {name} were made in torch.inference_mode(), and can never take part in gradients: load the"
            " model outside it."
        )
    if not all(is_loaded(part) for part in parts):
        raise LensplugError(
            f"{name} is on the meta device: its weights are not loaded, and no hook of accelerate's loads them when"
            " they are needed."
        )
