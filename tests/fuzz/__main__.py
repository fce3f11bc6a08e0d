"""All properties over thousands of cases, on all cores, and a table."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from fuzz.case import PROPERTIES, Case
from fuzz.run import Row, one_thread, run_task, seed_of_today, shared_out

CHUNK = 100
"""Cases that a process takes at a time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=seed_of_today())
    parser.add_argument("--models", type=int, default=24, help="random models of a kind")
    parser.add_argument("--only", action="append", choices=list(PROPERTIES), help="a property; all by default")
    parser.add_argument("--case", type=int, help="one case of it, with its traceback")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.case is not None:
        return one_case(arguments)
    print(f"seed {arguments.seed}", flush=True)
    began = time.perf_counter()
    rows = {name: Row(name) for name in shared_out(arguments.cases, arguments.only)}
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), initializer=one_thread) as pool:
        for finished in as_completed([pool.submit(run_task, *task) for task in _tasks(arguments)]):
            row = finished.result()
            rows[row.name].add(row)
            for message in row.messages:
                print(f"{row.name}: {message}", flush=True)
    print_table(list(rows.values()))
    print(f"{time.perf_counter() - began:.0f} s on {arguments.processes} processes, seed {arguments.seed}")
    return int(any(row.failures for row in rows.values()))


def _tasks(arguments: argparse.Namespace) -> list[tuple[str, range, int, int]]:
    return [
        (name, range(start, min(start + CHUNK, cases)), arguments.seed, arguments.models)
        for name, cases in shared_out(arguments.cases, arguments.only).items()
        for start in range(0, cases, CHUNK)
    ]


def one_case(given: argparse.Namespace) -> int:
    """A case that failed, once more."""
    one_thread()
    for name in given.only or []:
        case = Case(f"{given.seed}/{name}/{given.case}", f"{given.seed}", given.models)
        try:
            PROPERTIES[name].check(case)
        except Exception:
            traceback.print_exc()
            return 1
        print(f"{name}, case {given.case}: holds, largest difference {case.error:.3g}, {case.share:.1%} of what may be")
    return 0


def print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("property", title="fuzz")
    for column in ("cases", "failures", "worst error", "of allowed", "s"):
        table.add_column(column, justify="right")
    total = Row("all")
    for row in rows:
        total.add(row)
    for row in [*rows, total]:
        share = "exact" if row.share == 0 else f"{row.share:.1%}"
        table.add_row(row.name, f"{row.cases:,}", str(row.failures), f"{row.error:.1e}", share, f"{row.seconds:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    sys.exit(main())
