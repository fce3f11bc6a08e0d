"""The configuration of an audio-LLaMA: a sound encoder, a language model, and how the one becomes the other."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from lensplug.errors import LensplugError
from lensplug.geometry.audio_frames import WHISPER_CONVOLUTIONS

WAVEFORM_ENCODERS = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat")
"""Encoders that take the waveform itself and give a frame for every few hundred samples, by `model_type`."""
MEL_ENCODERS = ("whisper",)
"""Encoders that take a log-mel spectrogram of 30 seconds."""


class AudioLlamaConfig(PreTrainedConfig):
    """Configuration of `AudioLlamaForConditionalGeneration`.

    Args:
        audio_config: Configuration of the encoder, an object or a dict with its `model_type`; wav2vec2 if not given.
        text_config: Configuration of the language model; Llama by default.
        audio_token_id: The token that the vectors of a sound replace.
        num_audio_vectors: Vectors for each sound, however long it is. 10 unless `frames_per_vector` is given.
        frames_per_vector: Instead: how many frames of the encoder make one vector, so that a longer sound
            has more.
        sampling_rate: Sampling rate of the encoder's input, in Hz.
        projector_bias: Whether the two linear layers of the projector have biases.
        projector_dropout: Between norm and second linear layer, in training.
        projector_norm_eps: Epsilon of the projector's norm.
    """

    model_type = "audio_llama"
    sub_configs = {"audio_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        audio_config: Any = None,
        text_config: Any = None,
        *,
        audio_token_id: int = 32000,
        num_audio_vectors: int | None = None,
        frames_per_vector: int | None = None,
        sampling_rate: int = 16000,
        projector_bias: bool = True,
        projector_dropout: float = 0.1,
        projector_norm_eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        """See the class."""
        if num_audio_vectors is not None and frames_per_vector is not None:
            raise LensplugError("num_audio_vectors and frames_per_vector are both given: a sound has either.")
        if num_audio_vectors is None and frames_per_vector is None:
            num_audio_vectors = 10
        for name, value in (("num_audio_vectors", num_audio_vectors), ("frames_per_vector", frames_per_vector)):
            if value is not None and value < 1:
                raise LensplugError(f"{name} is {value}, expected 1 or more.")
        self.audio_config = _sub_config(audio_config, "wav2vec2")
        self.text_config = _sub_config(text_config, "llama")
        if self.audio_config.model_type not in WAVEFORM_ENCODERS + MEL_ENCODERS:
            raise LensplugError(
                f"the encoder is {self.audio_config.model_type!r}, expected one of"
                f" {', '.join(WAVEFORM_ENCODERS + MEL_ENCODERS)}."
            )
        self.audio_token_id = audio_token_id
        self.num_audio_vectors = num_audio_vectors
        self.frames_per_vector = frames_per_vector
        self.sampling_rate = sampling_rate
        self.projector_bias = projector_bias
        self.projector_dropout = projector_dropout
        self.projector_norm_eps = projector_norm_eps
        kwargs.setdefault("tie_word_embeddings", getattr(self.text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)

    @property
    def takes_waveforms(self) -> bool:
        """Whether the encoder takes waveforms; else log-mel spectrograms."""
        return self.audio_config.model_type in WAVEFORM_ENCODERS

    @property
    def encoder_convolutions(self) -> list[tuple[int, int, int]]:
        """(kernel, stride, padding) of the layers between samples (or mel frames) and the encoder's frames."""
        audio = self.audio_config
        if not self.takes_waveforms:
            return list(WHISPER_CONVOLUTIONS)
        layers = [(kernel, stride, 0) for kernel, stride in zip(audio.conv_kernel, audio.conv_stride, strict=True)]
        if getattr(audio, "add_adapter", False):
            layers += [(audio.adapter_kernel_size, audio.adapter_stride, 1)] * audio.num_adapter_layers
        return layers


def _sub_config(value: Any, default: str) -> Any:
    if value is None:
        return AutoConfig.for_model(default)
    if isinstance(value, dict):
        return AutoConfig.for_model(**{"model_type": default, **value})
    return value
