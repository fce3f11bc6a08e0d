"""The one error of the project.

It lives here because the patches import nothing from the rest of lensplug;
everybody else knows it as `lensplug.LensplugError`.
"""

from importlib.metadata import version

KNOWN = ("3.9.0", "4.3.0")
"""Versions of TransformerLens that the patches were tested with."""


class LensplugError(ValueError):
    """Something cannot be done exactly: the message says what came, what was expected, what to type next."""


def changed_inside(what: str) -> LensplugError:
    """The error if TransformerLens lacks an internal that a patch relies on."""
    return LensplugError(
        f"TransformerLens {version('transformer-lens')} has internals that lensplug has not been tested with:"
        f" {what}. It knows {' and '.join(KNOWN)}: pip install 'transformer-lens=={KNOWN[-1]}', or a newer lensplug."
    )
