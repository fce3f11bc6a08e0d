"""The one error of the project.

It lives here because the patches stand at the bottom of the house and import nothing from above;
everybody else knows it as `lensplug.LensplugError`.
"""


class LensplugError(ValueError):
    """Something cannot be done exactly: the message says what came, what was expected, what to type next."""
