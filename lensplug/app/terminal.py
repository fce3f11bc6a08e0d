"""Output of the command to a terminal, file or pipe: text verbatim, whatever it contains.

The only module that prints. No text is interpreted as markup (`c/m[/x]`), as an emoji name (`:smile:`) or as a number
to highlight; control characters are escaped (`printable`); paths are never cut or broken, so that copying them works;
characters that the terminal's encoding lacks are escaped.
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
"""Width at which no line breaks."""


def say(*parts: Part, error: bool = False) -> None:
    """Print parts in a row; further lines of a text are indented, so that they do not look like our next line.

    Args:
        *parts: Texts, some with a style: ("Answer:", "bold").
        error: Print to standard error.
    """
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    _console(error).print(Text.assemble(*((_indented(text), style) for text, style in pairs)))


def say_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; if it is wider than the terminal, each row as a line of names and values.

    Args:
        title: Title above the table.
        columns: Column names.
        rows: Cells, one per column.
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
    """Show progress: yields a function to call with each step.

    Meanwhile, warnings and log records of other packages, which quote model names and files, are made printable;
    lensplug's own warnings are printed as sentences.

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
        except Exception:  # arguments do not fit the format: logging reports that itself
            pass
        return record

    def written(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> str:
        if issubclass(category, LensplugWarning):  # the calling line is in lensplug: the message is enough
            return f"lensplug: {_indented(str(message))}\n"
        return printable(write(message, category, *args, **kwargs), keep="\n\t")

    logging.setLogRecordFactory(made)
    warnings.formatwarning = written
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
        warnings.formatwarning = write
