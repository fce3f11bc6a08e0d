"""Which multimodal families the installed transformers has, and the class of each that generates.

A family is a `model_type` that transformers lists for multimodal generation. Counted are those of its maps for
multimodal language models (which includes images and text to text), speech to text and text to sound; and of its map
for pretraining those that read a sound and generate, which no other map has (Audio Flamingo 3, Music Flamingo). In
transformers 5.24 these are 140.
"""

from __future__ import annotations

from transformers.models.auto import modeling_auto

MAPS = ("MULTIMODAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "TEXT_TO_WAVEFORM")
IN_NO_OTHER_MAP = ("audioflamingo3", "musicflamingo")


def families() -> dict[str, str]:
    """`model_type` -> the name of its class for generation, by name."""
    found: dict[str, str] = {}
    for name in MAPS:
        for model_type, class_name in _map(name).items():
            found.setdefault(model_type, class_name)
    pretraining = _map("PRETRAINING")
    found |= {model_type: pretraining[model_type] for model_type in IN_NO_OTHER_MAP if model_type in pretraining}
    return dict(sorted(found.items()))


def _map(name: str) -> dict[str, str]:
    """One of transformers' maps; of several classes the first."""
    listed = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {})
    return {model_type: names if isinstance(names, str) else names[0] for model_type, names in dict(listed).items()}
