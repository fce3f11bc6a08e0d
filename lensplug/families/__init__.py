"""What differs from one Hugging Face family to the next, one small file each, imported when asked for.

A family without a file works everywhere; its media have no geometry (`image_grid`, `video_grid` and
`audio_timeline` give None).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, TypeVar

from lensplug.errors import LensplugError
from lensplug.geometry import AudioTimeline, ImageGrid, VideoGrid
from lensplug.media import Media

MediumT = TypeVar("MediumT", bound=Sized)

FAMILIES = {
    "audio_llama": "lensplug.families.audio_llama",
    "audioflamingo3": "lensplug.families.whisper_windows",
    "aya_vision": "lensplug.families.cohere_vision",
    "cohere2_vision": "lensplug.families.cohere_vision",
    "cohere_compass": "lensplug.families.qwen_vl",
    "cosmos3_edge": "lensplug.families.qwen_vl",
    "cosmos3_omni": "lensplug.families.qwen_vl",
    "deepseek_vl": "lensplug.families.padded_square",
    "deepseek_vl_hybrid": "lensplug.families.padded_square",
    "exaone4_5": "lensplug.families.qwen_vl",
    "fast_vlm": "lensplug.families.fast_vlm",
    "gemma3": "lensplug.families.gemma3",
    "glm46v": "lensplug.families.glm_vl",
    "glm4v": "lensplug.families.glm_vl",
    "glm4v_moe": "lensplug.families.glm_vl",
    "glm_ocr": "lensplug.families.glm_vl",
    "glmasr": "lensplug.families.whisper_windows",
    "glmga": "lensplug.families.glm_vl",
    "got_ocr2": "lensplug.families.got_ocr2",
    "granite_speech": "lensplug.families.granite_speech",
    "granite_speech_plus": "lensplug.families.granite_speech",
    "hunyuan_vl": "lensplug.families.hunyuan_vl",
    "hyperclovax_vision_v2": "lensplug.families.qwen_vl",
    "idefics3": "lensplug.families.idefics3",
    "internvl": "lensplug.families.internvl",
    "janus": "lensplug.families.padded_square",
    "lfm2_vl": "lensplug.families.lfm2_vl",
    "lfm3_vl": "lensplug.families.qwen_vl",
    "lighton_ocr": "lensplug.families.pixtral",
    "llava": "lensplug.families.llava",
    "llava_next": "lensplug.families.llava_next",
    "llava_next_video": "lensplug.families.llava_next",
    "llava_onevision": "lensplug.families.llava_onevision",
    "mistral3": "lensplug.families.pixtral",
    "musicflamingo": "lensplug.families.whisper_windows",
    "ovis2": "lensplug.families.ovis2",
    "paddleocr_vl": "lensplug.families.qwen_vl",
    "paligemma": "lensplug.families.llava",
    "perception_lm": "lensplug.families.perception_lm",
    "qianfan_ocr": "lensplug.families.internvl",
    "qwen2_5_omni_thinker": "lensplug.families.qwen_omni",
    "qwen2_5_vl": "lensplug.families.qwen_vl",
    "qwen2_audio": "lensplug.families.whisper_windows",
    "qwen2_vl": "lensplug.families.qwen_vl",
    "qwen3_5": "lensplug.families.qwen_vl",
    "qwen3_5_moe": "lensplug.families.qwen_vl",
    "qwen3_asr": "lensplug.families.qwen3_asr",
    "qwen3_omni_moe_thinker": "lensplug.families.qwen_omni",
    "qwen3_vl": "lensplug.families.qwen_vl",
    "qwen3_vl_moe": "lensplug.families.qwen_vl",
    "smolvlm": "lensplug.families.idefics3",
    "video_llama_3": "lensplug.families.video_llama_3",
    "video_llava": "lensplug.families.llava",
    "vipllava": "lensplug.families.llava",
    "voxtral": "lensplug.families.whisper_windows",
}
"""`config.model_type` -> the module that knows its geometry: `media_layout(batch)`."""
NO_PLACE = {
    "blip-2": "a Q-Former makes its positions, each from all of the image",
    "idefics2": "a resampler (Perceiver) makes its positions, each from all of a view",
    "instructblip": "a Q-Former makes its positions, each from all of the image",
    "instructblipvideo": "a Q-Former makes its positions, each from all of a frame",
}
"""`config.model_type` -> why none of its positions is at a place of the image."""
FRAMES_ARE_IMAGES = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga")
"""`config.model_type` where the frames of a video have placeholders of images, and features of a video."""
ROUNDED_S = 0.05
"""The largest rounding error of resampling and spectrograms, in seconds."""


@dataclass(frozen=True)
class MediaLayout:
    """Layout of the media of a batch: numbers of positions, grids, timelines."""

    lengths: Mapping[str, Sequence[Sequence[int] | None]] = field(default_factory=dict)
    """Modality -> for each example, the number of positions of each medium; None where that is not known."""
    grids: dict[tuple[int, int], ImageGrid] = field(default_factory=dict)
    """(example, media_index) -> the geometry of that image."""
    video_grids: dict[tuple[int, int], VideoGrid] = field(default_factory=dict)
    """(example, media_index) -> that of that video."""
    timelines: dict[tuple[int, int], AudioTimeline] = field(default_factory=dict)
    """(example, media_index) -> that of that sound."""
    no_place: Mapping[str, str] = field(default_factory=dict)
    """Modality -> why its positions have no place, where that is in the nature of the model."""
    video_runs: Sequence[Sequence[bool]] | None = None
    """For each example, which of its runs of image placeholders are frames of a video, where videos have no
    placeholder of their own."""


@dataclass(frozen=True)
class ProcessedBatch:
    """A processor's outputs for a batch, with its media and settings."""

    config: Any
    """The full model's configuration."""
    outputs: Mapping[str, Any]
    """What its processor returned."""
    placeholders: Mapping[str, Sequence[Sequence[int]]]
    """Modality -> for each example, the lengths of its runs of placeholder tokens."""
    media: Media = field(default_factory=Media)
    """The media, if available, for their sizes, durations and frames."""
    processor: Any = None
    """The model's processor, where it is at hand."""

    @property
    def image_processor(self) -> Any:
        """How images are scaled and cut; None where it is not known."""
        return getattr(self.processor, "image_processor", None)

    @property
    def video_processor(self) -> Any:
        """How frames are scaled; None where it is not known."""
        return getattr(self.processor, "video_processor", None)


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The layout of a batch's media, as its family has it; of a family without a file, what their numbers tell."""
    layout, name = MediaLayout(), FAMILIES.get(batch.config.model_type)
    if name is not None:
        layout = import_module(name).media_layout(batch)
    numbers = batch.media.numbers
    counted = {kind: _by_number(runs, numbers[kind]) for kind, runs in batch.placeholders.items() if numbers[kind]}
    reason = NO_PLACE.get(batch.config.model_type)
    no_place = {kind: reason for kind in ("image", "video") if reason and kind in batch.placeholders}
    return replace(layout, lengths={**counted, **layout.lengths}, no_place=no_place)


def _by_number(runs: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[Sequence[int] | None]:
    """The positions of each medium of an example, where there is one, or as many as runs of placeholders."""
    return [
        runs_of_example if len(runs_of_example) == number else [sum(runs_of_example)] if number == 1 else None
        for runs_of_example, number in zip(runs, numbers, strict=True)
    ]


def shared_out(
    runs: Sequence[Sequence[int]], media: Sequence[MediumT]
) -> tuple[list[list[int]], dict[tuple[int, int], MediumT]]:
    """The media of a batch, in the order of the prompts, assigned to their examples.

    Args:
        runs: For each example, the lengths of its runs of placeholders.
        media: One geometry for each medium; its length is the number of its positions.

    Returns:
        For each example the length of each medium, and the media by (example, media_index).
    """
    remaining = iter(media)
    lengths: list[list[int]] = []
    by_place: dict[tuple[int, int], MediumT] = {}
    for example, own_runs in enumerate(runs):
        lengths_of_example: list[int] = []
        while sum(lengths_of_example) < sum(own_runs) and (medium := next(remaining, None)) is not None:
            by_place[example, len(lengths_of_example)] = medium
            lengths_of_example.append(len(medium))
        lengths.append(lengths_of_example)
    return lengths, by_place


def by_example(
    lengths: Sequence[Sequence[int]], media: Sequence[Sequence[MediumT | None]]
) -> dict[tuple[int, int], MediumT]:
    """The geometry of each medium by (example, media_index), where it is known.

    Where an example has another number of media than of geometries, none of them is.

    Args:
        lengths: For each example, the number of positions of each medium.
        media: For each example, the geometry of each medium, if it is known.
    """
    return {
        (example, index): medium
        for example, (media_of_example, counts) in enumerate(
            zip(media, lengths, strict=False)
        )  # nothing given: no example
        if len(media_of_example) == len(counts)
        for index, medium in enumerate(media_of_example)
        if medium is not None
    }


def by_image_size(batch: ProcessedBatch, image_grid: Callable[[int, int], ImageGrid | None]) -> MediaLayout:
    """The layout of the images of a batch, each from its size; nothing where that does not explain the positions.

    Args:
        batch: The batch.
        image_grid: Height and width of an image -> its grid; None where settings make something else of it.
    """
    grids = [[image_grid(height, width) for height, width in sizes] for sizes in batch.media.image_sizes]
    known = [[grid for grid in of_example if grid is not None] for of_example in grids]
    lengths = [[len(grid) for grid in of_example] for of_example in known]
    counted = [sum(runs) for runs in batch.placeholders.get("image", ())]
    if known != grids or [sum(of_example) for of_example in lengths] != counted:
        return MediaLayout()
    return MediaLayout({"image": lengths}, by_example(lengths, known))


def refuse_other_sound(place: tuple[int, int], given_s: float, seen_s: tuple[float, float]) -> None:
    """Raise if a sound is not as long as the one that the processor was given, which is known within bounds."""
    if not seen_s[0] - ROUNDED_S <= given_s <= seen_s[1] + ROUNDED_S:
        seen_range = " to ".join(f"{bound:.2f}" for bound in dict.fromkeys(seen_s))
        raise LensplugError(
            f"sound {place[1]} of example {place[0]} is {given_s:.2f} s long, and the processor saw one of {seen_range}"
            " s:"
            " give the sound that it was given, with its own sampling rate."
        )


def setting(size: Any, name: str) -> int | None:
    """One entry of a size of an image processor: a dict, or an object with attributes."""
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return None if value is None else int(value)
