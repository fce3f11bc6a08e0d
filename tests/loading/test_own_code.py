"""Remote code, the way of Ultravox: load it yourself, then wrap. The model's class is nobody's but its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from support.exact import compared
from support.models import SMALL, randomise
from torch import Tensor, nn

import lensplug
from lensplug import LensplugError

AUDIO = 301


class SpokenConfig(hf.PretrainedConfig):
    """A Llama with ears."""

    model_type = "spoken"
    sub_configs = {"text_config": hf.LlamaConfig}  # noqa: RUF012

    def __init__(self, text_config: Any = None, audio_token_index: int | None = AUDIO, **kwargs: Any) -> None:
        self.text_config = text_config or hf.LlamaConfig(**SMALL)
        self.audio_token_index = audio_token_index
        super().__init__(**kwargs)


class SpokenModel(hf.PreTrainedModel, hf.GenerationMixin):
    """Frames of a sound, stacked by two and projected, take the places that the processor says."""

    config_class = SpokenConfig
    _supports_sdpa = True

    def __init__(self, config: SpokenConfig) -> None:
        super().__init__(config)
        self.audio_tower = nn.Conv1d(4, 8, 3, padding=1)
        self.multi_modal_projector = nn.Linear(16, config.text_config.hidden_size)
        self.language_model = hf.LlamaForCausalLM(config.text_config)
        self.post_init()

    def get_decoder(self) -> Any:
        return self.language_model.model

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.language_model.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        audio_values: Tensor | None = None,
        audio_token_start_idx: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if audio_values is not None and audio_token_start_idx is not None and inputs_embeds.shape[1] > 1:
            heard = self.audio_tower(audio_values).transpose(1, 2)
            heard = self.multi_modal_projector(heard.reshape(len(heard), -1, 16))
            merged = zip(inputs_embeds, audio_token_start_idx.tolist(), heard, strict=True)
            inputs_embeds = torch.stack(
                [torch.cat([row[:start], frames, row[start + len(frames) :]]) for row, start, frames in merged]
            )
        given = {"attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
        return self.language_model(inputs_embeds=inputs_embeds, **given)


def given(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 290, (12,), generator=generator)
    tokens = torch.cat([words[:5], torch.full((6,), AUDIO), words[5:]])[None]
    sound = torch.randn(1, 4, 12, generator=generator)
    start = torch.tensor([5])
    return {
        "input_ids": tokens, "attention_mask": torch.ones_like(tokens), "audio_values": sound,
        "audio_token_start_idx": start,
    }  # fmt: skip


@pytest.mark.parametrize("core", ["Llama", "SmolLM3"])
def test_a_model_of_ones_own_code_is_wrapped(core):
    text = hf.LlamaConfig(**SMALL) if core == "Llama" else hf.SmolLM3Config(**SMALL, no_rope_layers=[1, 0, 1])
    model = SpokenModel(SpokenConfig(hf.LlamaConfig(**SMALL)))
    if core != "Llama":
        model.language_model = hf.SmolLM3ForCausalLM(text)
        model.config.text_config = text
    lens = lensplug.wrap(randomise(model))
    inputs = lens.encode(given())
    assert inputs.modality.mask("audio").sum() == 6 and inputs.modality.names == ("text", "audio")
    apart = compared(lens, inputs)
    assert apart.is_rounding(), apart
    with torch.no_grad():
        other = lens.model(lens.encode({**given(), "audio_values": given(1)["audio_values"]}))
        assert float((other - lens.model(inputs)).abs().max()) > 0.1, "the sound must matter"


def test_a_class_without_a_decoder_says_what_is_missing():
    class Bare(nn.Module):
        config = SpokenConfig()

    with pytest.raises(LensplugError, match="Bare has no get_decoder"):
        lensplug.wrap(Bare())
