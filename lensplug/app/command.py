"""Entry point of `lensplug` and `python -m lensplug`; the commands are in `lensplug.app.cli`."""

from __future__ import annotations

import os
import sys

from lensplug.app import interrupts
from lensplug.app.output import output_is_gone


def main() -> None:
    """Run the command line; a signal at any moment ends it in one line (`lensplug.app.interrupts`)."""
    _open_what_is_closed()
    interrupts.watch()
    code: object = 0
    try:
        try:
            from lensplug.app.cli import app

            app()
        except SystemExit as ended:
            code = ended.code
        except OSError as error:
            code = _code_without_output(error)
        try:
            sys.stdout.flush()
        except OSError as error:  # Python would flush again at shutdown
            code = code or _code_without_output(error)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        interrupts.ignore()
    except BaseException:
        if not interrupts.came():
            interrupts.ignore()
            raise
    if interrupts.came():
        interrupts.end()
    sys.exit(code)  # type: ignore[arg-type]


def _code_without_output(error: OSError) -> int:
    """The exit code where what the command prints has nowhere to go; any other error is raised again.

    A reader that has closed the pipe (`| head`) wants to hear nothing.
    """
    if not output_is_gone(error):
        raise error
    if isinstance(error, BrokenPipeError):
        return 1
    sys.stderr.write(f"lensplug: what it prints cannot be written: {error.strerror}.\n")
    return 1


def _open_what_is_closed() -> None:
    """Give a command started with a closed stream (`>&-`) /dev/null in its place.

    Else the first file that is opened, perhaps a page, takes the number of the stream and gets what is printed to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in order: the lowest free number is taken
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
