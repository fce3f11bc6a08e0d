"""Every multimodal family of the installed transformers, one small model each: is it wrapped, and how exactly?

A row for each family (140 in transformers 5.24; `tests/support/families/listed.py` says which are counted): built small
from its configuration class with random weights, wrapped, and compared with Hugging Face in fp32 on text and on inputs
of its own media made by hand. Each in a process of its own with a limit of time. Rows of the other version of
TransformerLens stay in `families.json`, so run it once in each environment.

    python benchmarks/families.py                            # the table of this environment, 5 minutes
    python benchmarks/families.py --only llava qwen2_vl      # some families
    python benchmarks/families.py --write docs/families.md   # all, and the page; with --only, the others' rows stay
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))  # the builders of small models

import torch  # noqa: E402
from support.families.compared import FamilyRow, compared  # noqa: E402
from support.families.listed import families  # noqa: E402
from support.families.page import page, table  # noqa: E402

ROWS = HERE / "families.json"
LIMIT_S = 60
WARM = ("llama", "qwen2", "qwen3", "mistral", "clip", "siglip", "whisper", "qwen2_vl", "gemma3", "llava")
"""Families whose code is imported before the processes are made, so that each need not."""


def row_of(family: str, seeds: int, limit_s: float) -> FamilyRow:
    """One row, made in a process that is ended when it takes too long."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(family, seeds, sender))
    process.start()
    sender.close()
    row = FamilyRow(family, families()[family], verdict="not built", reason=f"it took more than {limit_s:.0f} s")
    try:
        if receiver.poll(limit_s):
            row = receiver.recv()
    except EOFError:
        row.reason = "its process ended"
    finally:
        process.kill()
        process.join()
    return row


def _work(family: str, seeds: int, sender: Any) -> None:
    try:
        row = compared(family, families()[family], seeds)
    except Exception as error:  # a fault: it is told, and the others go on
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        row = FamilyRow(family, families()[family], verdict="error", reason=" ".join(reason.split()))
    sender.send(row)


def rows(names: list[str], *, seeds: int, processes: int, limit_s: float) -> Iterator[FamilyRow]:
    """Every row, in order."""
    for family in WARM:
        import_module(f"transformers.models.{family}.modeling_{family}")
    with ThreadPoolExecutor(processes) as workers:
        yield from workers.map(lambda family: row_of(family, seeds, limit_s), names)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these families (model_type)")
    parser.add_argument("--json", action="store_true", help="rows as JSON, one a line")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="keep the rows, write the page")
    parser.add_argument("--seeds", type=int, default=1, help="random models of each family")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for each family")
    arguments = parser.parse_args()
    known = families()
    if unknown := sorted(set(arguments.only or ()) - set(known)):
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    made = []
    names = arguments.only or list(known)
    for row in rows(names, seeds=arguments.seeds, processes=arguments.processes, limit_s=arguments.limit):
        made.append(row)
        print(json.dumps(row.as_dict()) if arguments.json else table([row], head=len(made) == 1), flush=True)
    if arguments.write:
        again = {(row.transformer_lens, row.family) for row in made}
        kept = [FamilyRow(**old) for old in json.loads(ROWS.read_text())] if ROWS.exists() else []
        stays = [row for row in kept if arguments.only or row.transformer_lens != version("transformer-lens")]
        made += [row for row in stays if (row.transformer_lens, row.family) not in again]
        made.sort(key=lambda row: (row.transformer_lens, row.family))
        ROWS.write_text(json.dumps([row.as_dict() for row in made], indent=0) + "\n", encoding="utf-8")
        arguments.write.write_text(page(made), encoding="utf-8")


if __name__ == "__main__":
    main()
