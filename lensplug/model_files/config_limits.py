"""What a model's JSON files may ask for: numbers that can be meant, attention that is here, classes of their kind.

transformers builds what a configuration says: a billion layers until memory is full, attention from any repository of
the hub, whatever class of its own a name happens to be. These files come with the weights, from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import FeatureExtractionMixin, ImageProcessingMixin, PreTrainedTokenizerBase, ProcessorMixin

from lensplug.errors import LensplugError
from lensplug.model_files.json_files import read_object
from lensplug.model_files.weight_files import refuse_outside

COUNTS = re.compile(r"(^|_)(layers|n_layer|depths?|blocks|stages|heads|experts|convs?|embeddings_groups)$")
"""Keys of what a model has several of, each with its weights."""
MOST = 10_000
SIZES = re.compile(
    r"(^|_)(size|dim|d_model|channels?|positions|embeddings|height|width|length|kernel|stride|vectors|tokens|fft"
    r"|bins|rate|edge|pixels|frames|pinpoints|samples|r)(_|$)"
)
"""Keys of what is a number of rows, columns, tokens, pixels or samples."""
LARGEST = 10**8
"""Largest allowed size in a model config; real vocabularies are below 1 million, contexts below 10 million tokens."""
OF_PROCESSORS = 100_000
"""Largest allowed size in a processor config, in pixels, samples or tokens."""
AREAS = re.compile(r"pixels|edge|frames|length|samples")
"""Keys of a processor's that count the pixels or samples of a whole image or sound."""
LARGEST_AREA = 2 * 10**9
MOST_ENTRIES = 10_000
"""Largest allowed length of a list in a processor config."""
PIXELS = 64 << 20
"""Largest allowed number of pixels of one encoder input image."""
LABELS = 1_000_000
"""Largest allowed number of labels; transformers makes a name for each."""
RATES = 1_000_000
"""Largest allowed sampling rate of a processor, in Hz."""
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
HERE = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention",
        "grouped_mm", "batched_mm")  # fmt: skip
"""What transformers has itself; anything else is, or may become, a kernel of the hub, which is code."""
CLASSES = {
    "processor_class": (ProcessorMixin, PreTrainedTokenizerBase, FeatureExtractionMixin, ImageProcessingMixin),
    "tokenizer_class": (PreTrainedTokenizerBase,),
    "feature_extractor_type": (FeatureExtractionMixin,),
    "image_processor_type": (ImageProcessingMixin, FeatureExtractionMixin),
    "video_processor_type": (ImageProcessingMixin,),
}
"""Keys that name a class, and what it must be if it is one of transformers'."""
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def refuse_config(path: Path) -> None:
    """Raise for a config.json that cannot be meant.

    Raises:
        LensplugError: If it is no JSON object, or a value of it is refused; the value is named.
    """
    config = read_object(path)
    for key, value in _values(config):
        name = key[-1]
        _refuse_implementation(path, key, value)
        if isinstance(value, float) and value != value:
            raise LensplugError(f"{str(path)!r} has {_dotted(key)} = NaN, expected a number.")
        if name == "image_grid_pinpoints" and isinstance(value, list):
            _refuse_pinpoints(path, key, value)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if name == "num_labels" and not 0 <= value <= LABELS:
            raise LensplugError(f"{str(path)!r} has {_dotted(key)} = {value}, expected 0 to {LABELS}.")
        if COUNTS.search(name) and not 0 <= value <= MOST and "feature" not in name:
            raise LensplugError(f"{str(path)!r} has {_dotted(key)} = {value}, expected 0 to {MOST}.")
        if SIZES.search(name) and not COUNTS.search(name) and value > LARGEST:
            raise LensplugError(f"{str(path)!r} has {_dotted(key)} = {value}, expected at most {LARGEST}.")
    for name, kind, form in (("architectures", list, "['NameOfAClass']"), ("auto_map", dict, "{...}")):
        if not isinstance(config.get(name), kind | None):
            raise LensplugError(f"{str(path)!r} has {name} = {_brief(config[name])}, expected {form}.")
    if not isinstance(config.get("model_type", ""), str):
        raise LensplugError(f"{str(path)!r} has model_type = {_brief(config['model_type'])}, expected a name.")
    if isinstance(weights := config.get("transformers_weights"), str):
        refuse_outside(path, [weights])


def refuse_processor(path: Path) -> None:
    """Raise for the configuration of a processor or tokenizer that cannot be meant.

    Raises:
        LensplugError: If it is no JSON object, or a value of it is refused; the value is named.
    """
    config = read_object(path)
    for key, value in _values(config):
        name = next((part for part in reversed(key) if not part.isdigit()), "")
        if name in CLASSES and isinstance(value, str):
            _refuse_class(path, name, value)
        if path.name not in PROCESSORS:
            continue
        if name == "image_grid_pinpoints" and isinstance(value, list) and key[-1] == name:
            _refuse_pinpoints(path, key, value)
        if name == "sampling_rate" and not (
            isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= RATES
        ):
            raise LensplugError(
                f"{str(path)!r} has {_dotted(key)} = {_brief(value)}, expected a rate from 1 to {RATES} Hz."
            )
        if isinstance(value, Mapping) and {"height", "width"} <= set(value):
            _refuse_picture(path, key, value["height"], value["width"])
        if isinstance(value, list) and len(value) > MOST_ENTRIES:
            raise LensplugError(
                f"{str(path)!r} has {len(value)} entries in {_dotted(key)}, expected at most {MOST_ENTRIES}."
            )
        most = LARGEST_AREA if AREAS.search(name) else OF_PROCESSORS
        if isinstance(value, int | float) and SIZES.search(name) and abs(value) > most and "sampling" not in name:
            raise LensplugError(f"{str(path)!r} has {_dotted(key)} = {value}, expected at most {most}.")


def _values(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value in a JSON object, with the keys that lead to it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        key, value = waiting.pop()
        if key:
            yield key, value
        if isinstance(value, Mapping):
            waiting += [((*key, str(name)), item) for name, item in value.items()]
        elif isinstance(value, list) and len(value) <= MOST_ENTRIES:
            waiting += [((*key, str(number)), item) for number, item in enumerate(value)]


def _refuse_implementation(path: Path, key: tuple[str, ...], value: Any) -> None:
    names_implementation = any(part.strip("_").removesuffix("_internal") in IMPLEMENTATIONS for part in key)
    if names_implementation and isinstance(value, str) and value.removeprefix("paged|") not in HERE:
        raise LensplugError(
            f"{str(path)!r} asks for {_dotted(key)} = {value!r}, which transformers would fetch from the hub and run:"
            f" take it out. Here is {', '.join(HERE[:3])}."
        )


def _refuse_class(path: Path, key: str, name: str) -> None:
    named_class = getattr(transformers, name, None)
    is_stand_in = getattr(named_class, "_backends", None) is not None and hasattr(named_class, "is_dummy")
    if named_class is None or is_stand_in:
        return
    if not isinstance(named_class, type) or not issubclass(named_class, CLASSES[key]):
        kinds = " or ".join(kind.__name__ for kind in CLASSES[key])
        raise LensplugError(f"{str(path)!r} has {key} = {name!r}, which is no {kinds} of transformers.")


def _refuse_picture(path: Path, key: tuple[str, ...], height: Any, width: Any) -> None:
    is_valid = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in (height, width))
    if not is_valid or height * width > PIXELS:
        raise LensplugError(
            f"{str(path)!r} has {_dotted(key)} of height {_brief(height)} and width {_brief(width)}, expected at least"
            f" 1 each and {PIXELS >> 20} million pixels at most."
        )


def _refuse_pinpoints(path: Path, key: tuple[str, ...], pairs: list[Any]) -> None:
    """Sizes of images that tiles are cut from."""
    are_pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    sides = [side for pair in pairs for side in pair] if are_pairs else []
    are_sizes = bool(sides) and all(type(side) is int and side > 0 for side in sides)
    if not are_sizes or any(height * width > PIXELS for height, width in pairs):
        raise LensplugError(
            f"{str(path)!r} has {_dotted(key)} = {_brief(pairs)}, expected pairs of height and width in whole pixels,"
            f" {PIXELS >> 20} million of them at most."
        )


def _dotted(key: tuple[str, ...]) -> str:
    return ".".join(key)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__}(...)"
