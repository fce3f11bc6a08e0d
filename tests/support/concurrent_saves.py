"""Several processes save pages under one name while others read it: no read may meet half a page, no save may fail.

python -m support.concurrent_saves --saves 1000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

PAGE = 1_000_000
"""Letters of a page."""


def write(save: Callable[[str, Path], Any], target: Path, letter: str, count: int, told: Any) -> None:
    """Save pages of one letter; what fails is told in a word."""
    for _ in range(count):
        try:
            save(letter * PAGE, target)
        except Exception as error:
            told.put(f"died: {type(error).__name__}")
        else:
            told.put("saved")


def read(target: Path, messages: Any, done: Any) -> None:
    """Read until all is written; a page is whole if it ends, and has all its letters, one as the other."""
    while not done.is_set():
        try:
            html = target.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue  # not yet there
        letter = next((candidate for candidate in "QXZJ" if candidate * 10 in html), "")
        is_complete = bool(letter) and letter * PAGE in html and html.rstrip().endswith("</html>")
        messages.put("read" if is_complete else "broken")


def as_page(text: str, target: Path) -> None:
    """Through a page, as `lensplug demo` does."""
    from lensplug.views.page.page import Index

    Index("", text, ()).save(target)


def as_text(text: str, target: Path) -> None:
    """Through the one function that writes, without the libraries of figures."""
    from lensplug.files.atomic_write import write_text

    write_text(target, f"<html>{text}</html>")


def run(save: Callable[[str, Path], Any], saves: int, writers: int = 4, readers: int = 2) -> dict[str, Any]:
    """How many saves and reads there were, and what came of each; what lies in the folder afterwards."""
    context = multiprocessing.get_context("fork")
    messages, finished = context.Queue(), context.Event()
    with tempfile.TemporaryDirectory() as folder:
        save("", Path(folder) / "first.html")  # imports are made once, before the processes part
        target = Path(folder) / "page.html"
        writing = [
            context.Process(target=write, args=(save, target, letter, saves // writers, messages))
            for letter in "QXZJ"[:writers]
        ]
        reading = [context.Process(target=read, args=(target, messages, finished)) for _ in range(readers)]
        for process in [*reading, *writing]:
            process.start()
        outcome: Counter[str] = Counter()
        while any(process.is_alive() for process in [*reading, *writing]) or not messages.empty():
            if not any(process.is_alive() for process in writing):
                finished.set()
            with suppress(Empty):
                outcome[messages.get(timeout=0.05)] += 1
        leftovers = sorted({path.name for path in Path(folder).iterdir()} - {"first.html", "page.html"})
    return {**outcome, "left": leftovers}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=1000)
    parser.add_argument("--as-text", action="store_true", help="without pages, and without the imports they need")
    options = parser.parse_args()
    outcome = run(as_text if options.as_text else as_page, options.saves)
    print(json.dumps(outcome))
    sys.exit(bool(outcome.get("broken") or outcome["left"] or any(key.startswith("died") for key in outcome)))


if __name__ == "__main__":
    main()
