"""Code that comes with a model runs only with `trust_remote_code=True`; there is no prompt on the terminal.

transformers asks, "Do you wish to run the custom code? [y/N]", wherever `trust_remote_code` did not reach one of its
loaders; a progress display swallows the question, and after 15 seconds it is an error of another kind.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import dynamic_module_utils

_LOCK = threading.Lock()
_SCOPES: list[int] = []
"""The time limit as it was, once for each scope that is open."""


@contextmanager
def nobody_is_asked() -> Iterator[None]:
    """A scope in which transformers raises where it would ask: its time for an answer is nought."""
    with _LOCK:
        _SCOPES.append(_SCOPES[0] if _SCOPES else dynamic_module_utils.TIME_OUT_REMOTE_CODE)
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        with _LOCK:
            before = _SCOPES.pop()
            if not _SCOPES:
                dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
