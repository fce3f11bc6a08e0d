"""The files of a model looked at before transformers opens them, in a folder or as the hub sent them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import hub

from lensplug.errors import LensplugError
from lensplug.model_files.config_limits import refuse_config, refuse_processor
from lensplug.model_files.json_files import read_object, refuse_no_file
from lensplug.model_files.tokenizer_limits import refuse_tokenizer
from lensplug.model_files.weight_files import INDEX, PICKLED_INDEX, WeightFiles, of_index, wanted, weight_files

CONFIG = "config.json"
OF_PROCESSORS = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer_config.json",
)  # fmt: skip
TOKENIZER = "tokenizer.json"
JSON = ("generation_config.json", "special_tokens_map.json", "added_tokens.json")
TEXTS = ("chat_template.jinja", "chat_template.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
ADAPTER = "adapter_config.json"
SMALL = (CONFIG, *OF_PROCESSORS, TOKENIZER, *JSON, *TEXTS, ADAPTER)
"""Every file but weights that transformers opens by its name."""
SUFFIXES = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin", ".gguf", ".py")
IF_THERE = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}


def local(name: str, where: Mapping[str, Any]) -> Path | None:
    """The folder with a model's small files, fetched from the hub if needed; None if the hub has none of them."""
    folder = Path(name)
    if folder.is_dir():
        return folder / str(where.get("subfolder", ""))
    cached_files = hub.cached_files(name, list(SMALL), **where, **IF_THERE)
    config = next((Path(file) for file in cached_files or () if Path(file).name == CONFIG), None)
    return None if config is None else config.parent


def fetch_weights(name: str, where: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Fetch a model's weight files from the hub, those that transformers would; of a folder there is nothing to do."""
    if Path(name).is_dir() or where.get("gguf_file") is not None:
        return
    looked_for = wanted(variant=options.get("variant"), use_safetensors=options.get("use_safetensors"))
    for file, spelt in looked_for.items():
        cached_files = hub.cached_files(name, [spelt], **where, **IF_THERE)
        if cached_files and file in (INDEX, PICKLED_INDEX):
            hub.cached_files(name, of_index(Path(cached_files[0])), **where, **IF_THERE)
        if cached_files:
            return


def refuse_broken(folder: Path, name: str, *, may_have_adapter: bool = False) -> None:
    """Raise if one of the files next to the weights is broken, not a file, or requires what is not available.

    Args:
        folder: From `local`.
        name: What the user calls the model.
        may_have_adapter: Whether the folder may be an adapter's, as for its tokenizer.

    Raises:
        LensplugError: Then; the file is named.
    """
    for path in sorted(folder.iterdir()):
        if path.name.endswith(SUFFIXES):
            refuse_no_file(path)
    if (folder / ADAPTER).exists() and not may_have_adapter:
        raise LensplugError(
            f"{name!r} could not be loaded: it has an adapter next to the model, {ADAPTER}: merge it first,"
            " model.merge_and_unload().save_pretrained(...), or take the file out, for the model without it."
        )
    if (folder / CONFIG).exists():
        refuse_config(folder / CONFIG)
    for file in OF_PROCESSORS:
        if (folder / file).exists():
            refuse_processor(folder / file)
    if (folder / TOKENIZER).exists():
        refuse_tokenizer(folder / TOKENIZER)
    for file in JSON:
        if (folder / file).exists():
            read_object(folder / file)


def whole_weights(folder: Path | None, options: Mapping[str, Any]) -> WeightFiles | None:
    """What the weight files hold; None if that is not known in advance, as for GGUF.

    Raises:
        LensplugError: If one is broken, missing or elsewhere.
    """
    if folder is None or options.get("gguf_file") is not None:
        return None
    files = weight_files(folder, variant=options.get("variant"), use_safetensors=options.get("use_safetensors"))
    return files if files.names else None
