"""The processor of an audio-LLaMA: words and sounds to tensors, `<audio>` expanded to its vectors."""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
from transformers import BatchFeature, ProcessorMixin

from lensplug.audio_llama.configuration import AudioLlamaConfig
from lensplug.errors import LensplugError
from lensplug.geometry.audio_frames import frame_count


class AudioLlamaProcessor(ProcessorMixin):
    """A feature extractor (of wav2vec2, or of Whisper) and a tokenizer.

        processor = AudioLlamaProcessor.of(config, feature_extractor, tokenizer)
        processor(text="<audio> How does the speaker sound?", audio=[waveform], sampling_rate=16000)

    Text is padded on the left, sounds on the right, with their own mask (`audio_attention_mask`).
    """

    audio_token: str
    audio_token_id: int
    num_audio_vectors: int | None
    frames_per_vector: int | None
    convolutions: list[list[int]]
    attributes = ["feature_extractor", "tokenizer"]
    feature_extractor_class = "AutoFeatureExtractor"
    tokenizer_class = "AutoTokenizer"

    # transformers reads the names of the positional arguments off the function itself: without keyword-only
    # ones, and undecorated (the tests check annotations by decorating), or what was saved is left out in loading.
    @no_type_check
    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        audio_token: str = "<audio>",
        num_audio_vectors: int | None = 10,
        frames_per_vector: int | None = None,
        convolutions: list[list[int]] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Use `AudioLlamaProcessor.of`: what is said here must be what the model does."""
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        if self.audio_token_id in (None, tokenizer.unk_token_id):
            raise LensplugError(
                f"the tokenizer does not know {audio_token!r}: add it with tokenizer.add_tokens([{audio_token!r}],"
                " special_tokens=True), and resize the model's embeddings."
            )
        self.num_audio_vectors = num_audio_vectors
        self.frames_per_vector = frames_per_vector
        self.convolutions = [list(layer) for layer in convolutions or []]
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    @classmethod
    def of(
        cls,
        config: AudioLlamaConfig,
        feature_extractor: Any,
        tokenizer: Any,
        *,
        audio_token: str = "<audio>",
        chat_template: str | None = None,
    ) -> AudioLlamaProcessor:
        """The processor that fits a configuration.

        Raises:
            LensplugError: If the tokenizer has another id for the audio token than the configuration, or the
                feature extractor another sampling rate.
        """
        processor = cls(
            feature_extractor,
            tokenizer,
            audio_token=audio_token,
            num_audio_vectors=config.num_audio_vectors,
            frames_per_vector=config.frames_per_vector,
            convolutions=[list(layer) for layer in config.encoder_convolutions],
            chat_template=chat_template,
        )
        if processor.audio_token_id != config.audio_token_id:
            raise LensplugError(
                f"{audio_token!r} is token {processor.audio_token_id}, the configuration says {config.audio_token_id}."
            )
        if feature_extractor.sampling_rate != config.sampling_rate:
            raise LensplugError(
                f"the feature extractor takes {feature_extractor.sampling_rate} Hz, the configuration says"
                f" {config.sampling_rate}."
            )
        return processor

    def __call__(self, text: Any = None, audio: Any = None, *, sampling_rate: int | None = None, **kwargs: Any) -> Any:
        """Run tokenizer and feature extractor.

        Args:
            text: A prompt or a list of prompts, with one audio token for each sound.
            audio: The sounds of all prompts in their order: one waveform, or a list; mono, floats.
            sampling_rate: Sampling rate of every sound, in Hz; must be the feature extractor's.
            **kwargs: For the tokenizer, such as `padding`, also as `text_kwargs` or `common_kwargs`; `audio_kwargs`
                may hold the sampling rate.

        Raises:
            LensplugError: If the sampling rate is missing or another, a sound is empty, too short or too long, not
                mono or not finite, or there are more or fewer sounds than audio tokens.
        """
        if text is None:
            raise LensplugError("there is no text: give a prompt with one audio token for each sound.")
        of_audio = {**kwargs.pop("common_kwargs", {}), **kwargs.pop("audio_kwargs", {})}
        of_text = {**kwargs.pop("text_kwargs", {}), **kwargs}
        sounds = [] if audio is None else [self._sound(sound) for sound in _as_list(audio)]
        texts = [text] if isinstance(text, str) else list(text)
        placeholders = sum(prompt.count(self.audio_token) for prompt in texts)
        if placeholders != len(sounds):
            raise LensplugError(
                f"there are {len(sounds)} sound(s) and {placeholders} placeholder(s) {self.audio_token!r}: give one for"
                " each."
            )
        features: dict[str, Any] = {}
        if sounds:
            self._refuse_other_rate(sampling_rate or of_audio.get("sampling_rate"))
            features, counts = self._features(sounds)
            texts = self._expanded(texts, counts)
        options = {"padding": len(texts) > 1, "padding_side": "left", "return_tensors": "pt"}
        unused = (
            "images",
            "videos",
            "return_metadata",
            "do_sample_frames",
        )  # transformers gives these to every processor
        options |= {name: value for name, value in of_text.items() if name not in unused}
        return BatchFeature({**self.tokenizer(texts, **options), **features})

    def _features(self, sounds: list[np.ndarray]) -> tuple[dict[str, Any], list[int]]:
        """What the encoder takes, and how many vectors each sound becomes."""
        extractor = self.feature_extractor
        is_mel = hasattr(extractor, "hop_length")
        features = extractor(
            [sound.astype(np.float32) for sound in sounds],
            sampling_rate=extractor.sampling_rate,
            padding="max_length" if is_mel else True,
            truncation=False,
            # Always: a wav2vec2-base extractor leaves it out, and then normalises over the padding too.
            return_attention_mask=True,
            return_tensors="pt",
        )
        name, mask = "input_features" if is_mel else "input_values", features["attention_mask"]
        counts = [self._count(int(length)) for length in mask.sum(dim=-1)]
        return {name: features[name], "audio_attention_mask": mask}, counts

    def _expanded(self, texts: list[str], counts: list[int]) -> list[str]:
        """Each audio token as many times as its sound has vectors."""
        remaining_counts, expanded = iter(counts), []
        for prompt in texts:
            first, *later_parts = prompt.split(self.audio_token)
            expanded.append(first + "".join(self.audio_token * next(remaining_counts) + part for part in later_parts))
        return expanded

    def _count(self, length: int) -> int:
        """Number of vectors for a sound, from its number of samples (mel frames)."""
        if self.frames_per_vector is None:
            return int(self.num_audio_vectors or 0)
        return -(-frame_count(length, self.convolutions) // self.frames_per_vector)

    def _sound(self, sound: Any) -> np.ndarray:
        array = np.asarray(sound)
        extractor = self.feature_extractor
        if array.ndim != 1:
            raise LensplugError(f"a sound has the shape {list(array.shape)}, expected [sample], mono.")
        if not np.issubdtype(array.dtype, np.floating):
            raise LensplugError(
                f"a sound is {array.dtype}, expected floats from -1 to 1: divide by the largest integer."
            )
        if not np.isfinite(array).all():
            raise LensplugError("a sound has samples that are NaN or infinite.")
        hop = getattr(extractor, "hop_length", 1)
        if len(array) == 0 or frame_count(-(-len(array) // hop), self.convolutions) < 1:
            raise LensplugError(f"a sound has {len(array)} samples, too few for one frame of the encoder.")
        longest = getattr(extractor, "n_samples", None)
        if longest is not None and len(array) > longest:
            raise LensplugError(
                f"a sound is {len(array) / extractor.sampling_rate:.1f} s long, and the encoder takes"
                f" {longest / extractor.sampling_rate:.0f} s at most: cut it."
            )
        return array

    def _refuse_other_rate(self, sampling_rate: int | None) -> None:
        expected = self.feature_extractor.sampling_rate
        if sampling_rate is None:
            raise LensplugError(f"the sampling rate is missing: give sampling_rate=, {expected} for this encoder.")
        if sampling_rate != expected:
            raise LensplugError(
                f"the sampling rate is {sampling_rate} Hz and the encoder takes {expected} Hz: resample"
                f" (soxr.resample(waveform, {sampling_rate}, {expected})), or give lens.prepare the pair (waveform,"
                f" {sampling_rate}), which does."
            )

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes."""
        names = ["input_features" if hasattr(self.feature_extractor, "hop_length") else "input_values"]
        return [*self.tokenizer.model_input_names, *names, "audio_attention_mask"]


def _as_list(audio: Any) -> list[Any]:
    """One waveform, or several, as a list; a list of numbers is one."""
    if isinstance(audio, list | tuple) and not (len(audio) and np.isscalar(audio[0])):
        return list(audio)
    return [audio]
