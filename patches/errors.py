"""The one error of the project.

It lives here because the patches stand at the bottom of the house and import nothing from above;
everybody else knows it as `lensplug.LensplugError`.
"""

from importlib.metadata import version

KNOWN = ("3.9.0", "4.3.0")
"""Versions of TransformerLens whose inside is known: the patches were held against them."""


class LensplugError(ValueError):
    """Something cannot be done exactly: the message says what came, what was expected, what to type next."""


def changed_inside(what: str) -> LensplugError:
    """What to say where TransformerLens lacks something of its inside that a patch stands on."""
    return LensplugError(
        f"TransformerLens {version('transformer-lens')} has internals that lensplug has not been tested with:"
        f" {what}. It knows {' and '.join(KNOWN)}: pip install 'transformer-lens=={KNOWN[-1]}', or a newer lensplug."
    )
