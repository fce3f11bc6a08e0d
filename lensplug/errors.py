"""The one error class, `LensplugError`, and the one class of warnings, `LensplugWarning`."""

from lensplug.patches.errors import LensplugError as LensplugError


class LensplugWarning(UserWarning):
    """What a user should know of a result that is given all the same; a filter can name it."""
