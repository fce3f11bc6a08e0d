"""The one error class: `LensplugError`."""

from lensplug.patches.errors import LensplugError as LensplugError
