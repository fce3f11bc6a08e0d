"""Entry point of `lensplug` and `python -m lensplug`; the commands are in `lensplug.app.cli`."""

from __future__ import annotations

import os
import sys

from lensplug.app import interrupts


def main() -> None:
    """Run the command line; a signal at any moment ends it in one line (`lensplug.app.interrupts`)."""
    interrupts.watch()
    code: object = 0
    try:
        try:
            from lensplug.app.cli import app

            app()
        except SystemExit as ended:
            code = ended.code
        except BrokenPipeError:
            code = 1
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has closed the pipe (`| head`); Python would flush again at shutdown
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = code or 1
        interrupts.ignore()
    except BaseException:
        if not interrupts.came():
            interrupts.ignore()
            raise
    if interrupts.came():
        interrupts.end()
    sys.exit(code)  # type: ignore[arg-type]
