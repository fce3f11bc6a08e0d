"""The audio-LLaMA: vectors of a sound take the place of an `<audio>` token in the prompt of a LLaMA.

Encoder -> frames -> linear interpolation in time to a few vectors -> projector -> merged with the
embeddings of the words -> language model. "Early concatenation", as in multimodal emotion recognition in
conversation. A model of transformers like any other: `from_pretrained`, `save_pretrained`, `generate`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lensplug.audio_llama.configuration import AudioLlamaConfig
from lensplug.errors import LensplugError


def interpolated(
    frames: Float[Tensor, "sound frame width"], lengths: Int[Tensor, " sound"], counts: Int[Tensor, " sound"]
) -> Float[Tensor, "vector width"]:
    """Each sound's frames, linearly interpolated in time to its number of vectors; all sounds' vectors in a row.

    First and last vector are first and last frame, as in `torch.nn.functional.interpolate` with
    `align_corners=True`; of each sound only its own `lengths` frames are read.
    """
    vector_index = torch.arange(int(counts.max()))[None]
    last = (lengths.cpu() - 1)[:, None]
    # In double precision, for a frame's index must not be rounded; on the CPU, for not every device has it.
    step = last.double() / (counts.cpu() - 1).clamp(min=1)[:, None]
    source_index = torch.minimum(vector_index * step, last.double())
    before = source_index.floor().long()
    after = torch.minimum(before + 1, last)
    weight = (source_index - before)[..., None].to(frames)
    rows = torch.arange(len(frames))[:, None]
    vectors = torch.lerp(frames[rows, before], frames[rows, after], weight)
    return vectors[vector_index < counts.cpu()[:, None]]


class AudioLlamaProjector(nn.Module):
    """From the encoder's width to the language model's."""

    def __init__(self, config: AudioLlamaConfig) -> None:
        """Make the layers, with the widths in `config`."""
        super().__init__()
        width = config.audio_config.hidden_size
        self.proj1 = nn.Linear(width, width, bias=config.projector_bias)
        self.act = nn.SiLU()
        self.norm = LlamaRMSNorm(width, eps=config.projector_norm_eps)
        self.dropout = nn.Dropout(config.projector_dropout)
        self.proj2 = nn.Linear(width, config.text_config.hidden_size, bias=config.projector_bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """Project vectors, `[vector width]`."""
        return self.proj2(self.dropout(self.norm(self.act(self.proj1(vectors)))))


class AudioLlamaPreTrainedModel(PreTrainedModel):
    """What the two models below share."""

    config_class = AudioLlamaConfig
    base_model_prefix = "model"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class AudioLlamaModel(AudioLlamaPreTrainedModel):
    """Encoder, projector and language model, without the head."""

    def __init__(self, config: AudioLlamaConfig) -> None:
        """With random weights."""
        super().__init__(config)
        tower = AutoModel.from_config(config.audio_config, trust_remote_code=False)
        # Of an encoder-decoder (Whisper) the encoder alone.
        self.audio_tower = tower.get_encoder() if config.audio_config.is_encoder_decoder else tower
        self.projector = AudioLlamaProjector(config)
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_audio_frames(
        self, sounds: Tensor, audio_attention_mask: Int[Tensor, "sound time"]
    ) -> tuple[Float[Tensor, "sound frame width"], Int[Tensor, " sound"]]:
        """The encoder's frames of each sound, and how many of them are the sound's and not of its padding.

        Args:
            sounds: Waveforms `[sound sample]`, or log-mel spectrograms `[sound mel time]`.
            audio_attention_mask: 1 at the samples (mel frames) of the sound, 0 at its padding, on the right.
        """
        lengths = audio_attention_mask.sum(dim=-1).long()
        sounds = sounds.to(self.audio_tower.dtype)
        if not self.config.takes_waveforms:
            # Whisper hears 30 seconds always, the silence behind a short sound with it; its frames are not read.
            frames = self.audio_tower(sounds).last_hidden_state
        elif self._mask_is_enough:
            frames = self.audio_tower(sounds, attention_mask=audio_attention_mask).last_hidden_state
        else:
            frames = self._frames_alone(sounds, lengths)
        return frames, torch.as_tensor(self.audio_tower._get_feat_extract_output_lengths(lengths)).long()

    @property
    def _mask_is_enough(self) -> bool:
        """Whether the encoder's mask keeps padding out of a sound's frames.

        Not where the first convolution is normalised over time (feat_extract_norm="group"), nor where
        frames are convolved more than once behind the masking (data2vec's positions, add_adapter).
        """
        audio = self.config.audio_config
        return (
            audio.model_type != "data2vec-audio"
            and audio.feat_extract_norm == "layer"
            and not getattr(audio, "add_adapter", False)
        )

    def _frames_alone(self, sounds: Tensor, lengths: Int[Tensor, " sound"]) -> Tensor:
        """Sounds of one length at a time, without padding."""
        frames: list[Tensor] = [sounds] * len(sounds)
        for length in sorted(set(lengths.tolist())):
            chosen = (lengths == length).nonzero()[:, 0]
            outputs = self.audio_tower(sounds[chosen, :length]).last_hidden_state
            for index, output in zip(chosen.tolist(), outputs, strict=True):
                frames[index] = output
        return nn.utils.rnn.pad_sequence(frames, batch_first=True)

    def get_audio_features(
        self, sounds: Tensor, audio_attention_mask: Int[Tensor, "sound time"] | None = None
    ) -> Float[Tensor, "vector d_model"]:
        """What takes the place of the `<audio>` tokens, all sounds in a row.

        Args:
            sounds: As in `get_audio_frames`.
            audio_attention_mask: As there; without it nothing is padding.
        """
        if audio_attention_mask is None:
            audio_attention_mask = torch.ones_like(sounds[:, 0] if sounds.ndim == 3 else sounds, dtype=torch.long)
        frames, lengths = self.get_audio_frames(sounds, audio_attention_mask)
        if self.config.frames_per_vector is None:
            counts = torch.full_like(lengths, self.config.num_audio_vectors)
        else:
            counts = -(-lengths // self.config.frames_per_vector)
        return self.projector(interpolated(frames, lengths, counts))

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Merge and run the language model; arguments as in `AudioLlamaForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise LensplugError("give input_ids or inputs_embeds, one of them.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        sounds, other_input = input_values, input_features
        if not self.config.takes_waveforms:
            sounds, other_input = other_input, sounds
        if other_input is not None:
            expected = "input_values" if self.config.takes_waveforms else "input_features"
            raise LensplugError(f"the encoder {self.config.audio_config.model_type} takes {expected}.")
        if sounds is not None:
            if input_ids is None:
                raise LensplugError("sounds are merged by token: give input_ids with them, not inputs_embeds.")
            inputs_embeds = self._merged(
                input_ids, inputs_embeds, self.get_audio_features(sounds, audio_attention_mask)
            )
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **kwargs,
        )

    def _merged(self, input_ids: Tensor, inputs_embeds: Tensor, vectors: Float[Tensor, "vector d_model"]) -> Tensor:
        is_audio = input_ids == self.config.audio_token_id
        if int(is_audio.sum()) != len(vectors):
            raise LensplugError(
                f"the prompt has {int(is_audio.sum())} audio token(s) and the sounds have {len(vectors)} vectors: let"
                " AudioLlamaProcessor take text and sounds together."
            )
        return inputs_embeds.masked_scatter(is_audio[..., None], vectors.to(inputs_embeds))


class AudioLlamaForConditionalGeneration(AudioLlamaPreTrainedModel, GenerationMixin):
    """The audio-LLaMA with its language-model head."""

    # transformers 5 takes a dict, source and target
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: AudioLlamaConfig) -> None:
        """With random weights."""
        super().__init__(config)
        self.model = AudioLlamaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.model.language_model

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """The head."""
        self.lm_head = value

    def get_audio_features(self, *args: Any, **kwargs: Any) -> Tensor:
        """See `AudioLlamaModel.get_audio_features`."""
        return self.model.get_audio_features(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        sounds: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a prompt with sounds.

        Args:
            input_ids: `[batch pos]`, with as many audio tokens as the sounds have vectors.
            input_values: Waveforms `[sound sample]`, all sounds of the batch in the order of the prompts.
            input_features: Instead, for Whisper: log-mel spectrograms `[sound mel time]`.
            sounds: Instead of these two, whichever the encoder takes: a TransformerBridge passes nothing on that is
                called `input_values`.
            audio_attention_mask: `[sound sample]` (`[sound time]`), 0 where a sound is padded.
            attention_mask: `[batch pos]`, 0 where a prompt is padded.
            position_ids: `[batch pos]`.
            inputs_embeds: Instead of `input_ids`, when everything is merged already.
            labels: `[batch pos]`; -100 is left out of the loss.
            use_cache: Whether to return a cache.
            logits_to_keep: How many last positions get logits (0: all), or which positions.
            **kwargs: For the language model. The cache of a generation is among them: `cache`, in older versions of
                transformers `past_key_values`.
        """
        if sounds is not None:
            if input_values is not None or input_features is not None:
                raise LensplugError("sounds are given twice: give input_values, input_features or sounds.")
            input_values, input_features = (sounds, None) if self.config.takes_waveforms else (None, sounds)
        outputs = self.model(
            input_ids=input_ids,
            input_values=input_values,
            input_features=input_features,
            audio_attention_mask=audio_attention_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept_rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept_rows])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        other_outputs = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **other_outputs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The sounds go in once, with the prompt (newer versions of transformers see to that themselves)."""
        past = kwargs.get("cache", kwargs.get("past_key_values"))
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        if past is not None and past.get_seq_length() > 0:
            for name in ("input_values", "input_features", "sounds", "audio_attention_mask"):
                inputs.pop(name, None)
        return inputs
