"""What a model's files make transformers raise, as one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lensplug.errors import LensplugError

EXPECTED = (
    "Expected a folder that save_pretrained wrote for model and processor, or a model of the Hugging Face hub, such as"
    " 'llava-hf/llava-onevision-qwen2-0.5b-ov-hf'."
)


def explained(name: str, error: BaseException, reading: str = "", *, may_trust: bool = True) -> LensplugError:
    """Why transformers could not load it, in a sentence or two; `reading` is what it was at."""
    chain = list(_chain(error))
    kinds, text = {type(cause).__name__ for cause in chain}, str(error).strip()
    if "GatedRepoError" in kinds:
        why = "it asks for an account: accept its terms on the hub, and log in with `hf auth login`"
    elif kinds & {"RepositoryNotFoundError", "HFValidationError"} or "not a valid model identifier" in text:
        why = "the hub has no model of that name, and there is no such folder"
    elif _without_network(chain):
        why = (
            "there is no such folder here, no network (or HF_HUB_OFFLINE is set), and nothing of it in the cache of the"
            " hub: give a folder, or fetch it where there is a network, `hf download`"
        )
    elif "UnpicklingError" in kinds:
        why = (
            f"{reading}: it holds more than tensors, and opening it could run code of others (or it is no such file):"
            " use the model's safetensors files, or ask who made it for them"
        )
    elif "trust_remote_code" in text:
        why = (
            "it has code of its own: read it, and give trust_remote_code=True (--trust-remote-code) to run it, or load"
            " the model with transformers, and give it to lensplug.wrap(model, processor)"
            if may_trust
            else "it has code of its own, which is not run here: give the model in a form that transformers itself has"
        )
    else:
        reason = text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"
        where = f"{reading}: " if reading else ""
        return LensplugError(f"{name!r} could not be loaded: {where}{' '.join(reason.split())[:800]} ({EXPECTED})")
    return LensplugError(f"{name!r} could not be loaded: {why}. {EXPECTED}")


@contextmanager
def failures_explained(name: str, *, may_trust: bool = True) -> Iterator[Callable[[str], None]]:
    """A scope in which whatever transformers raises about a model becomes one sentence.

    Its files may come from anywhere, and what they make it raise is of every class: of its own, of the libraries that
    it reads them with, or of Python, such as a division by a size that is nought.

    Args:
        name: Name of the model, as the user passed it.
        may_trust: Whether the user can choose to run the model's own code.

    Yields:
        A function to call with the name of what is read now, for the message.

    Raises:
        LensplugError: Then.
    """
    now = ""

    def reading(what: str) -> None:
        nonlocal now
        now = what

    try:
        yield reading
    except LensplugError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LensplugError(f"there is not enough memory for {name!r} ({now}): {error}") from error
    except Exception as error:
        raise explained(name, error, now, may_trust=may_trust) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the libraries in Rust
            raise
        raise explained(name, error, now, may_trust=may_trust) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _without_network(chain: list[BaseException]) -> bool:
    names = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError", "ConnectTimeout"}
    is_connection_error = any(
        "couldn't connect" in str(cause) or "outgoing traffic has been disabled" in str(cause) for cause in chain
    )
    return is_connection_error or any(type(cause).__name__ in names for cause in chain)
