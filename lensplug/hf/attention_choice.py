"""Which attention the modules of a model compute with, chosen for the length of a scope.

Modules of transformers look their attention function up, by a name in their configuration, each time they run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lensplug.hf.run_lock import turn
from lensplug.patches.core_parts import CoreParts, mask_form


@contextmanager
def attending_by(name: str, core: CoreParts, configs: Sequence[Any]) -> Iterator[None]:
    """A scope in which the modules of these configurations compute attention by this name; other threads wait.

    Args:
        name: "sdpa", "eager", or one that was registered with transformers.
        core: The core of the model whose turn it is.
        configs: The configurations that change.
    """
    with turn(core.decoder.config):
        before = [config._attn_implementation for config in configs]

        def put_back() -> None:
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation = implementation

        try:
            try:
                for config in configs:
                    config._attn_implementation = name
                yield
            finally:
                put_back()
        finally:
            put_back()  # an interrupt may have come before the first


def sdpa(core: CoreParts) -> AbstractContextManager[None]:
    """A scope in which the decoder uses `scaled_dot_product_attention`, or eager if it cannot."""
    return attending_by(mask_form(core.decoder), core, [core.decoder.config])


def eager(core: CoreParts) -> AbstractContextManager[None]:
    """A scope in which the decoder attends as Hugging Face writes it down: scores, softmax, values."""
    return attending_by("eager", core, [core.decoder.config])
