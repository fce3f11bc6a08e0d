"""Mutated media of every kind, and a table of what came of them."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
import traceback

from fuzz_media.run import Row, content_of, read, run_kind
from fuzz_media.seeds import SEEDS

KINDS = [kind for kinds in SEEDS.values() for kind in kinds]


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz_media", description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=seed_of_today(), help="another one each day")
    parser.add_argument("--only", action="append", choices=KINDS, help="a kind; all by default")
    parser.add_argument("--file", type=int, help="one file of it, with its traceback")
    given = parser.parse_args()
    if given.file is not None:
        return one_file(given)
    print(f"seed {given.seed}", flush=True)
    rows, began = [], time.perf_counter()
    for kind in given.only or KINDS:
        row = run_kind(kind, given.files, given.seed)
        rows.append(row)
        for message in row.messages:
            print(message, flush=True)
    print_table(rows)
    print(f"{time.perf_counter() - began:.0f} s, seed {given.seed}")
    return int(any(row.failures for row in rows))


def seed_of_today() -> int:
    """As the variable says, else the date."""
    return int(os.environ.get("LENSPLUG_FUZZ_SEED") or datetime.date.today().strftime("%Y%m%d"))


def one_file(given: argparse.Namespace) -> int:
    """A file that failed, once more, in this very process."""
    for kind in given.only or []:
        content = content_of(kind, given.file, given.seed)
        began = time.perf_counter()
        try:
            read(kind, content)
        except Exception:
            traceback.print_exc()
        print(f"{kind} {given.file}: {len(content)} bytes, {time.perf_counter() - began:.2f} s")
    return 0


def print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", title="mutated media")
    for column in ("tried", "refused", "read", "failures", "slowest, s", "most memory, MB"):
        table.add_column(column, justify="right")
    for row in rows:
        failures = ", ".join(f"{number} {what}" for what, number in row.failures.items()) or "0"
        counts = (f"{number:,}" for number in (row.tried, row.refused, row.read))
        table.add_row(row.kind, *counts, failures, f"{row.seconds:.1f}", f"{row.memory / 1e6:,.0f}")
    sums = [f"{sum(getattr(row, name) for row in rows):,}" for name in ("tried", "refused", "read")]
    total = sum(sum(row.failures.values()) for row in rows)
    slowest, most = max(row.seconds for row in rows), max(row.memory for row in rows)
    table.add_row("all", *sums, str(total), f"{slowest:.1f}", f"{most / 1e6:,.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
