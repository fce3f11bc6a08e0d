"""What encoders take, by hand: pixels in the forms of processors, spectrograms, waveforms.

Each form reads sizes from the configuration; `FORMS` has the order in which they are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from support.families.small import VIEW


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", None) or config


def _audio(config: Any) -> Any:
    for name in ("audio_config", "encoder_config", "acoustic_tokenizer_encoder_config"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return config


def _view(config: Any) -> int:
    size = getattr(_vision(config), "image_size", None) or VIEW
    return int(size[0] if isinstance(size, list | tuple) else size)


def _patch(config: Any) -> int:
    size = getattr(_vision(config), "patch_size", None) or 8
    return int(size[0] if isinstance(size, list | tuple) else size)


def one_picture(config: Any, generator: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": _normal(generator, 1, 3, _view(config), _view(config))}


def sized_picture(config: Any, generator: torch.Generator) -> dict[str, Any]:
    view = _view(config)
    return {**one_picture(config, generator), "image_sizes": torch.tensor([[view, view]])}


def pictures_of_one_prompt(config: Any, generator: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": one_picture(config, generator)["pixel_values"][None]}


def base_view_and_tiles(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """LLaVA-NeXT's: a view of the whole, and two beside each other."""
    view = _view(config)
    pixels = _normal(generator, 1, 3, 3, view, view)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[view, 2 * view]])}


def masked_picture(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Aria's: with a mask of pixels."""
    view = _view(config)
    return {**one_picture(config, generator), "pixel_mask": torch.ones(1, view, view, dtype=torch.bool)}


def local_and_global(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Two resolutions of a picture."""
    return {**one_picture(config, generator), "high_res_pixel_values": _normal(generator, 1, 3, VIEW, VIEW)}


def packed_patches(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Qwen-VL's: 4 x 8 patches in rows, with their grid."""
    return {"pixel_values": _patches(config, generator, 1), "image_grid_thw": torch.tensor([[1, 4, 8]])}


def packed_patch_pictures(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """The same as little pictures."""
    patch = _patch(config)
    return {"pixel_values": _normal(generator, 32, 3, patch, patch), "image_grid_thw": torch.tensor([[1, 4, 8]])}


def packed_flat_patches(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """The same without a patch in time."""
    width = 3 * _patch(config) ** 2
    return {"pixel_values": _normal(generator, 32, width), "image_grid_thw": torch.tensor([[1, 4, 8]])}


def packed_merged(config: Any, generator: torch.Generator) -> dict[str, Any]:
    return {**packed_flat_patches(config, generator), "image_merge_sizes": torch.tensor([1])}


def placed_patches(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Gemma 4's: 6 x 6 patches with their places."""
    vision, side = _vision(config), 6
    patch = getattr(vision, "model_patch_size", None) or _patch(config)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=-1)[None]
    return {
        "pixel_values": _normal(generator, 1, side * side, 3 * patch * patch).sigmoid(),
        "image_position_ids": places,
    }


def naflex_patches(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """LFM2-VL's: patches of 4 x 4 places."""
    pixels = _normal(generator, 1, 16, 3 * _patch(config) ** 2)
    mask, shapes = torch.ones(1, 16, dtype=torch.long), torch.tensor([[4, 4]])
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def flat_patches(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Fuyu's: six patches in a row, without a grid."""
    return {"pixel_values": _normal(generator, 1, 6, 3 * _patch(config) ** 2)}


def masked_tiles(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Granite-Docling's: two tiles of a picture, and which of them there are."""
    view = _view(config)
    return {
        "pixel_values": _normal(generator, 1, 2, 3, view, view),
        "pixel_attention_mask": torch.ones(1, 2, dtype=torch.bool),
    }


def strip_of_patches(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """MiniCPM-V's: 4 x 8 patches side by side, with the sizes of their grid."""
    patch = _patch(config)
    return {"pixel_values": _normal(generator, 1, 3, patch, 32 * patch), "target_sizes": torch.tensor([[4, 8]])}


def strip_of_frames(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """The same of a video of one frame."""
    strip = strip_of_patches(config, generator)
    return {"pixel_values_videos": strip["pixel_values"], "target_sizes_videos": strip["target_sizes"]}


def pooled_crops(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Molmo 2's: one crop of patches, of which four make a position, by their numbers."""
    side, patch = _view(config) // _patch(config), _patch(config)
    numbers = torch.arange(side * side).view(side // 2, 2, side // 2, 2).transpose(1, 2).reshape(-1, 4)
    return {
        "pixel_values": _normal(generator, 1, side * side, 3 * patch * patch),
        "image_token_pooling": numbers,
        "image_grids": torch.tensor([[side // 2, side // 2, 0, 0]]),
        "image_num_crops": torch.tensor([1]),
    }


def whole_and_crop(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Phi-4-multimodal's: a view of the whole, and one crop, with masks of their patches."""
    view = _view(config)
    side = view // _patch(config)
    return {
        "image_pixel_values": _normal(generator, 1, 2, 3, view, view),
        "image_sizes": torch.tensor([[view, view]]),
        "image_attention_mask": torch.ones(1, 2, side, side),
    }


def sized_spectrogram(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Phi-4-multimodal's: with how many positions it becomes."""
    bins, length = _mel(config)
    return {
        "audio_input_features": _normal(generator, 1, length, bins),
        "audio_embed_sizes": torch.tensor([-(-length // 8)]),
        "audio_attention_mask": torch.ones(1, length, dtype=torch.bool),
    }


def _patches(config: Any, generator: torch.Generator, frames: int) -> Tensor:
    vision = _vision(config)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", None) or 3
    steps = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None) or 1
    width = channels * steps * _patch(config) ** 2
    return _normal(generator, frames * 32, width)


def packed_video(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Two steps of time of 4 x 8 patches."""
    return {"pixel_values_videos": _patches(config, generator, 2), "video_grid_thw": torch.tensor([[2, 4, 8]])}


def frames(config: Any, generator: torch.Generator) -> dict[str, Any]:
    view = _view(config)
    return {"pixel_values_videos": _normal(generator, 1, 2, 3, view, view)}


def eight_frames(config: Any, generator: torch.Generator) -> dict[str, Any]:
    view = _view(config)
    return {"pixel_values_videos": _normal(generator, 1, 8, 3, view, view)}


def packed_merged_video(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """VideoLLaMA 3's: with how many patches of each side become one position."""
    width = 3 * _patch(config) ** 2
    steps = {"video_grid_thw": torch.tensor([[2, 4, 8]]), "video_merge_sizes": torch.tensor([2])}
    kept = {"video_compression_mask": torch.ones(16, dtype=torch.bool)}
    return {"pixel_values_videos": _normal(generator, 64, width), **steps, **kept}


def _mel(config: Any) -> tuple[int, int]:
    audio = _audio(config)
    for name in ("input_size", "num_mel_bins", "n_mels", "input_feat_size", "input_dim", "feat_in", "feature_size"):
        if isinstance(getattr(audio, name, None), int):
            bins = getattr(audio, name)
            break
    else:
        bins = 80
    return bins, 2 * (getattr(audio, "max_source_positions", None) or 50)


def spectrogram(config: Any, generator: torch.Generator) -> dict[str, Any]:
    return {"input_features": _normal(generator, 1, *_mel(config))}


def masked_spectrogram(config: Any, generator: torch.Generator) -> dict[str, Any]:
    bins, length = _mel(config)
    mask = torch.ones(1, length, dtype=torch.long)
    return {**spectrogram(config, generator), "input_features_mask": mask}


def attended_spectrogram(config: Any, generator: torch.Generator) -> dict[str, Any]:
    bins, length = _mel(config)
    return {**spectrogram(config, generator), "feature_attention_mask": torch.ones(1, length, dtype=torch.long)}


def turned_spectrogram(config: Any, generator: torch.Generator) -> dict[str, Any]:
    bins, length = _mel(config)
    return {"input_features": _normal(generator, 1, length, bins)}


def masked_turned_spectrogram(config: Any, generator: torch.Generator) -> dict[str, Any]:
    bins, length = _mel(config)
    return {**turned_spectrogram(config, generator), "input_features_mask": torch.ones(1, length, dtype=torch.bool)}


def padded_spectrogram(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Moss-Transcribe's: with a mask of the samples that it was made of."""
    bins, length = _mel(config)
    return {**masked_spectrogram(config, generator), "padding_mask": torch.ones(1, 160 * length, dtype=torch.long)}


def waveform(config: Any, generator: torch.Generator) -> dict[str, Any]:
    samples = _samples(config)
    return {"input_values": _normal(generator, 1, samples), "padding_mask": torch.ones(1, samples, dtype=torch.long)}


def waveform_of_channels(config: Any, generator: torch.Generator) -> dict[str, Any]:
    samples = _samples(config)
    mask = torch.ones(1, samples, dtype=torch.long)
    return {"input_values": _normal(generator, 1, 1, samples), "padding_mask": mask}


def _samples(config: Any) -> int:
    """Enough for some positions, few enough for a small context."""
    hop = getattr(_audio(config), "hop_length", None)
    return 24 * hop if hop and hop < 100 else 3200


Form = Callable[[Any, torch.Generator], dict[str, Any]]
FORMS: dict[str, tuple[Form, ...]] = {
    "image": (
        packed_patches, packed_flat_patches, packed_patch_pictures, packed_merged, placed_patches, naflex_patches,
        whole_and_crop, pooled_crops, strip_of_patches, flat_patches, masked_tiles, base_view_and_tiles, sized_picture,
        masked_picture, local_and_global, one_picture, pictures_of_one_prompt,
    ),
    "video": (strip_of_frames, packed_video, packed_merged_video, frames, eight_frames),
    "audio": (
        sized_spectrogram, attended_spectrogram, padded_spectrogram, masked_spectrogram, masked_turned_spectrogram,
        spectrogram, turned_spectrogram, waveform, waveform_of_channels,
    ),
}  # fmt: skip
