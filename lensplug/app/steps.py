"""A command as steps: progress is shown, and errors end in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from lensplug.app import interrupts
from lensplug.app.output import output_is_gone
from lensplug.app.terminal import say, working
from lensplug.errors import LensplugError


@contextmanager
def steps() -> Iterator[Any]:
    """Show progress; an error ends the command with its message, not a traceback."""
    with errors_in_a_sentence(), working("starting") as step:
        from transformers.utils import logging

        logging.disable_progress_bar()  # the steps say enough
        yield step


@contextmanager
def errors_in_a_sentence() -> Iterator[None]:
    """End the command with what went wrong, and the code 2 for a LensplugError, 1 for what nobody foresaw."""
    try:
        yield
    except LensplugError as error:
        say(f"lensplug: {error}", error=True)
        raise typer.Exit(2) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if output_is_gone(error) or interrupts.came() or os.environ.get("LENSPLUG_TRACEBACK"):
            raise
        say(
            f"lensplug: {type(error).__name__}, which was not foreseen: {error}. If the model's files are sound, it is"
            " a fault of lensplug: please report it, with what LENSPLUG_TRACEBACK=1 prints.",
            error=True,
        )
        raise typer.Exit(1) from None
