"""What the command says on a terminal, in a file or a pipe: text as it is, whatever is in it.

The only place that prints, so that nothing can be forgotten: no text is read as markup (`c/m[/x]`), as the name of
an emoji (`:smile:`) or as a number to be coloured; control characters are shown (`printable`); a path is never cut or
broken: the terminal wraps it, and copying gives it whole; what the terminal's encoding lacks is shown as an escape.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeAlias

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lensplug.errors import LensplugWarning
from lensplug.printable import printable

Part: TypeAlias = str | tuple[str, str]
"""A text, or a text and its style."""
UNLIMITED = 10_000
"""Columns of a terminal on which nothing is broken."""


def say(*parts: Part, error: bool = False) -> None:
    """Print parts, one behind the other; lines of a text are indented, so that none looks like the next of ours.

    Args:
        *parts: Texts, some with a style: ("Answer:", "bold").
        error: To the standard error.
    """
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    _console(error).print(Text.assemble(*((_indented(text), style) for text, style in pairs)))


def say_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; where it is wider than the terminal, each row as a line of names and values.

    Args:
        title: Above it.
        columns: Their names.
        rows: Cells, one for each column.
    """
    console, table = _console(), Table()
    say((title, "italic"))
    for name in columns:
        table.add_column(Text(printable(name)), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    table.width = Measurement.get(console, console.options.update(width=UNLIMITED), table).maximum
    if table.width <= console.width or not console.is_terminal:
        console.print(table, width=table.width)
        return
    for row in rows:
        say(", ".join(f"{name} {cell}" for name, cell in zip(columns, row, strict=True)))


@contextmanager
def working(first: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done: call what is yielded with each step.

    Warnings and log lines of others, which name models and quote their files, are made printable meanwhile; warnings of
    lensplug are printed as sentences.

    Args:
        first: The first step.
    """
    console = _console()
    spinner = "dots" if console.encoding.startswith("utf") else "line"
    with _printable_records(), console.status(_step(first), spinner=spinner) as status:
        yield lambda step: status.update(_step(step))


def _step(step: str) -> Text:
    return Text(f"{printable(step)} ...", no_wrap=True, overflow="ellipsis")


def _indented(text: str) -> str:
    return "\n  ".join(printable(line, keep="\t") for line in text.split("\n"))


def _console(error: bool = False) -> Console:
    console = _made(error)
    if getattr(console.file, "errors", "") in ("strict", "surrogateescape"):
        console.file.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return console


@cache
def _made(error: bool) -> Console:
    return Console(stderr=error, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def _printable_records() -> Iterator[None]:
    make, write = logging.getLogRecordFactory(), warnings.formatwarning

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            record.msg, record.args = printable(record.getMessage(), keep="\n\t"), ()
        except Exception:  # arguments that do not fit their text: logging itself says so
            pass
        return record

    def written(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> str:
        if issubclass(category, LensplugWarning):  # the line that called is one of ours: the sentence is enough
            return f"lensplug: {_indented(str(message))}\n"
        return printable(write(message, category, *args, **kwargs), keep="\n\t")

    logging.setLogRecordFactory(made)
    warnings.formatwarning = written
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
        warnings.formatwarning = write
