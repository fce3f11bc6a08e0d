"""Tiny encoders of Hugging Face with random weights of large variance, and batches with padding for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor

from support.models import randomise

TEXT = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 40,
}  # fmt: skip
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
BART = {
    "vocab_size": 60, "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40,
}  # fmt: skip
VIT = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 24,
    "patch_size": 8,
}  # fmt: skip

CONFIGS: dict[str, Any] = {
    "BertForSequenceClassification": lambda: hf.BertConfig(**TEXT),
    "AlbertForSequenceClassification": lambda: hf.AlbertConfig(**TEXT, embedding_size=8),
    "RobertaModel": lambda: hf.RobertaConfig(**TEXT),
    "T5EncoderModel": lambda: hf.T5Config(**T5),
    "BartModel": lambda: hf.BartConfig(**BART),
    "ViTModel": lambda: hf.ViTConfig(**VIT),
    "LlamaForCausalLM": lambda: hf.LlamaConfig(**TEXT, num_key_value_heads=1),
}


def model(name: str, attention: str = "eager") -> Any:
    encoder = randomise(getattr(hf, name)._from_config(CONFIGS[name](), attn_implementation=attention), seed=3)
    with torch.no_grad():
        for part, parameter in encoder.named_parameters():
            if part.endswith((".query.weight", ".q_proj.weight")):
                parameter.mul_(3)  # attention that is far from flat
    return encoder


def batch(name: str, *, left: bool = False) -> dict[str, Tensor]:
    """Two examples; of texts the first is shorter."""
    generator = torch.Generator().manual_seed(5)
    if name == "ViTModel":
        return {"pixel_values": torch.randn(2, 3, 24, 24, generator=generator)}
    ids, mask = torch.randint(5, 60, (2, 7), generator=generator), torch.ones(2, 7, dtype=torch.long)
    mask[0, slice(0, 2) if left else slice(5, 7)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def attentions(name: str, made: Any = None, inputs: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
    with torch.no_grad():
        outputs = (made or model(name))(**(inputs or batch(name)), output_attentions=True)
    return outputs.encoder_attentions if name == "BartModel" else outputs.attentions
