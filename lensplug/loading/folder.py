"""Whether a name refers to a model, as far as can be checked before reading weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lensplug.errors import LensplugError
from lensplug.model_files.failures import EXPECTED

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
PROCESSOR = ("processor_config.json", "preprocessor_config.json")
TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def found(name: str | Path, *, subfolder: str = "", gguf_file: str | None = None) -> str:
    """The name as transformers takes it; of a folder one that has all that is needed.

    Raises:
        LensplugError: If it is a path, and no such folder, or one that lacks something.
    """
    text = str(name)
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise LensplugError(
            f"{text!r} could not be loaded: it names a user who has no home here. {EXPECTED}"
        ) from error
    is_path = isinstance(name, Path) or text.startswith(("/", ".", "~")) or text.count("/") > 1
    if path.is_file():
        raise LensplugError(f"{text!r} could not be loaded: it is a file. Give the folder that it is in. {EXPECTED}")
    if not text or not path.is_dir():
        if is_path or not text:
            raise LensplugError(f"{text!r} could not be loaded: there is no such folder. {EXPECTED}")
        return text
    _refuse_incomplete(path / subfolder, text, gguf_file)
    return str(path)


def refuse_no_processor(name: str, config: Any) -> None:
    """Raise if a folder of a model that sees or hears has a tokenizer's files only.

    Raises:
        LensplugError: Then.
    """
    folder = Path(name)
    kinds = [kind for kind in ("vision", "audio") if getattr(config, f"{kind}_config", None) is not None]
    if kinds and folder.is_dir() and not any((folder / file).is_file() for file in PROCESSOR):
        raise LensplugError(
            f"{name!r} could not be loaded: it has no {PROCESSOR[0]} or {PROCESSOR[1]}, which say how images and sounds"
            f" are read. Save it next to the model: AutoProcessor.from_pretrained(...).save_pretrained({name!r})."
        )


def _refuse_incomplete(folder: Path, name: str, gguf_file: str | None) -> None:
    files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    if not files:
        raise LensplugError(f"{name!r} could not be loaded: the folder is empty, or is not there. {EXPECTED}")
    why = ""
    if gguf_file is not None:
        why = "" if gguf_file in files else f"it has no {gguf_file!r}"
    elif "config.json" not in files:
        why = "it has no config.json"
        if "adapter_config.json" in files:
            why += ", but an adapter: merge it into its model first, model.merge_and_unload().save_pretrained(...)"
        elif gguf := [file for file in files if file.endswith(".gguf")]:
            why += f", but a GGUF file: give gguf_file={gguf[0]!r}"
    elif not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        why = f"it has no weights ({', '.join(WEIGHTS)}): save the model itself, model.save_pretrained({name!r})"
    if not why and gguf_file is None and not set(files) & {*PROCESSOR, *TOKENIZER}:
        why = f"it has no processor and no tokenizer: save it next to the model, processor.save_pretrained({name!r})"
    if why:
        raise LensplugError(f"{name!r} could not be loaded: {why}. {EXPECTED}")
