"""The embedded default: small trained checkpoints that ship in the package and need no network.

Real Hugging Face models with real processors, trained on data that `scenes` draws and `voices` makes, so
that every notebook, test and demo runs anywhere in seconds. `python -m lensplug.tiny.train` makes them again.
"""

from __future__ import annotations

from pathlib import Path

from lensplug.lens import MultimodalLens
from lensplug.loading.load_and_wrap import load
from lensplug.loading.options import Dtype

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def llava_onevision(
    *, device: str | None = "cpu", dtype: Dtype = "float32", process_weights: bool = False
) -> MultimodalLens:
    """The tiny LLaVA-OneVision: it says colour, shape or place of the one coloured shape in an image.

    Six layers of six heads, 96 wide; views of 48 px in patches of 8 px, up to five views an image. Ask
    "What is the color? Answer single word." (or shape, or place; or "Answer in a phrase.").

    Args:
        device: Where to.
        dtype: The dtype of the weights (stored in half precision).
        process_weights: See `lensplug.wrap`.
    """
    return load(CHECKPOINTS / "llava-onevision", device=device, dtype=dtype, process_weights=process_weights)


def audio_llama(
    *, device: str | None = "cpu", dtype: Dtype = "float32", process_weights: bool = False
) -> MultimodalLens:
    """The tiny audio-LLaMA: it says how a voice sounds, when it speaks, and what its transcript says.

    Six layers of six heads, 96 wide, over a wav2vec2 encoder; ten vectors a sound. Ask what stands in
    `lensplug.tiny.voices.QUESTIONS`, such as "How does the speaker sound?", behind a transcript or without.

    Args:
        device: Where to.
        dtype: The dtype of the weights (stored in half precision).
        process_weights: See `lensplug.wrap`.
    """
    return load(CHECKPOINTS / "audio-llama", device=device, dtype=dtype, process_weights=process_weights)
