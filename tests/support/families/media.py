"""Inputs of any family made by hand, from the shapes in its configuration: text, and text with each medium it takes.

Where the family has `get_image_features` (or of videos, or audio), that says how many positions the medium takes; forms
of pixels and spectrograms are tried in the order of `FORMS` until the model's encoder takes one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from support.families.small import VIEW

KINDS = ("image", "video", "audio")
TYPE_IDS = {"image": 1, "video": 2, "audio": 3}
WORDS = 12
MOST_POSITIONS = 70
MATTERS = 1e-2
"""In logits: a medium that changes less was not read."""


def text_inputs(words: int = WORDS, seed: int = 0) -> dict[str, Tensor]:
    """Words alone, none of them a placeholder."""
    tokens = torch.randint(60, 290, (1, words), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def placeholder(config: Any, kind: str) -> int | None:
    """The token that a medium's positions have."""
    for name in (f"{kind}_token_id", f"{kind}_token_index", f"{kind}_patch_id"):
        token = getattr(config, name, None)
        if isinstance(token, int):
            return token
    return None


def with_medium(model: Any, kind: str, seed: int = 0) -> dict[str, Any]:
    """Words, one image (video, sound), words.

    Raises:
        ValueError: If no form that is known here is one that the model takes; with the first error of each.
    """
    token = placeholder(model.config, kind)
    name = f"get_{kind}_features"
    features = getattr(model, name, None) or getattr(getattr(model, "model", None), name, None)
    if token is None:
        raise ValueError(f"no token for {kind} in its configuration")
    taken = set(inspect.signature(type(model).forward).parameters)
    errors: dict[str, str] = {}
    for form in FORMS[kind]:
        try:
            made = form(model.config, torch.Generator().manual_seed(seed))
            if not set(made) <= taken:
                continue
            for positions in _counts(features, made):
                inputs = {**_prompt(token, positions, kind, taken, seed), **made}
                try:
                    with torch.no_grad():
                        logits = model(**inputs, use_cache=False).logits
                        other = form(model.config, torch.Generator().manual_seed(seed + 100))
                        others = model(**{**inputs, **other}, use_cache=False).logits
                except ValueError:
                    if features is not None:
                        raise
                    continue  # another number of positions
                if float((logits - others).abs().max()) > MATTERS:
                    return inputs
                raise ValueError("the medium does not change the logits")
        except Exception as error:  # any: forms are guesses
            errors.setdefault(str(error)[:120] or type(error).__name__, form.__name__)
    raise ValueError("; ".join(f"{form}: {error}" for error, form in errors.items()) or "no form fits its arguments")


def _counts(features: Any, made: dict[str, Any]) -> list[int]:
    """The number of positions that a medium takes; where the model does not say it, all that are worth a try."""
    if features is None:
        return list(range(1, MOST_POSITIONS))
    with torch.no_grad():
        return [_positions(features(**made))]


def _prompt(token: int, positions: int, kind: str, taken: set[str], seed: int) -> dict[str, Tensor]:
    words = text_inputs(seed=seed)["input_ids"][0]
    tokens = torch.cat([words[: WORDS // 2], torch.full((positions,), token), words[WORDS // 2 :]])[None]
    prompt = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in taken:
            prompt[name] = (tokens == token).long() * (TYPE_IDS[kind] if name == "mm_token_type_ids" else 1)
    return prompt


def _positions(features: Any) -> int:
    """How many vectors these are: a tensor, a list of tensors, or an output that holds them."""
    if hasattr(features, "pooler_output") and features.pooler_output is not None:
        return _positions(features.pooler_output)
    if hasattr(features, "last_hidden_state"):
        return _positions(features.last_hidden_state)
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    if isinstance(features, list | tuple):
        return sum(map(_positions, features))
    return 0


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


def _patches(config: Any, generator: torch.Generator, frames: int) -> Tensor:
    vision = _vision(config)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", None) or 3
    width = channels * (getattr(vision, "temporal_patch_size", None) or 1) * _patch(config) ** 2
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


def _mel(config: Any) -> tuple[int, int]:
    audio = _audio(config)
    for name in ("num_mel_bins", "n_mels", "input_feat_size", "input_dim", "input_size", "feat_in", "feature_size"):
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


def waveform(config: Any, generator: torch.Generator) -> dict[str, Any]:
    return {"input_values": _normal(generator, 1, 3200), "padding_mask": torch.ones(1, 3200, dtype=torch.long)}


def waveform_of_channels(config: Any, generator: torch.Generator) -> dict[str, Any]:
    return {"input_values": _normal(generator, 1, 1, 3200), "padding_mask": torch.ones(1, 3200, dtype=torch.long)}


Form = Callable[[Any, torch.Generator], dict[str, Any]]
FORMS: dict[str, tuple[Form, ...]] = {
    "image": (
        packed_patches, packed_flat_patches, packed_patch_pictures, packed_merged, placed_patches, naflex_patches,
        base_view_and_tiles, sized_picture, masked_picture, local_and_global, one_picture, pictures_of_one_prompt,
    ),
    "video": (packed_video, frames, eight_frames),
    "audio": (
        attended_spectrogram, masked_spectrogram, masked_turned_spectrogram, spectrogram, turned_spectrogram, waveform,
        waveform_of_channels,
    ),
}  # fmt: skip


def media(model: Any, seed: int = 0) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each medium that a model takes: its inputs, or why none could be made here."""
    for kind in KINDS:
        takes = placeholder(model.config, kind) is not None or hasattr(model, f"get_{kind}_features")
        if takes:
            try:
                yield kind, with_medium(model, kind, seed)
            except ValueError as error:
                yield kind, str(error)
