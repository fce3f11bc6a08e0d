"""The error class, `LensplugError`, a child of it, and the one class of warnings, `LensplugWarning`."""

from lensplug.patches.errors import LensplugError as LensplugError


class NotEnoughMemoryError(LensplugError):
    """A run that would not fit into memory; half as many examples may."""


class LensplugWarning(UserWarning):
    """What a user should know of a result that is given all the same; a filter can name it."""
