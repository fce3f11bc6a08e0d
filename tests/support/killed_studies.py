"""A study whose processes are killed at random moments gives, in the end, what an undisturbed one gives.

    PYTHONPATH=tests python -m support.killed_studies --examples 2000 --kills 50

Two drivers with two workers each work on one folder; drivers and workers are killed (SIGKILL) at random moments. One
prompt kills every process that runs it, one picture is broken, one is edited after it was added, and a file of results
is truncated. Printed is a table of what had to be the same.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import lensplug
from lensplug import analysis
from lensplug.tiny.scenes import draw_scene
from support.poisoned import POISON

QUESTION = "What is the color? Answer single word."
MODEL = "support.poisoned:llava_onevision"


def pictures(folder: Path, count: int, seed: int = 0) -> None:
    """Draw scenes, in a folder for each shape."""
    rng = random.Random(seed)
    for index in range(count):
        scene = draw_scene(rng, size=(48, 48))
        path = folder / scene.shape / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene.image.save(path)


def study_of(folder: Path, scenes: Path, chunk: int) -> lensplug.Study:
    """A study of these scenes, with the examples that fail."""
    study = lensplug.Study(folder, model=MODEL, chunk=chunk)
    study.add_folder(scenes, prompt=QUESTION, group="shape")
    study.measure(analysis.head_specialization, query=-1)
    study.measure(analysis.logit_lens, positions=-1)
    study.measure(analysis.neuron_activity, domain=study.column("shape"))
    return study


def driver(folder: Path, workers: int = 2) -> subprocess.Popen[bytes]:
    """A process that runs the study with some workers."""
    command = [sys.executable, "-m", "lensplug", "study", "run", str(folder), "--devices", ",".join(["cpu"] * workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())


def environment() -> dict[str, str]:
    """One thread for each process, and the tests' helpers to import."""
    tests = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def killed_until_done(folder: Path, kills: int, drivers: int, rng: random.Random, longest_s: float) -> int:
    """Run the study, killing a driver or worker now and then; how many were killed."""
    running = [driver(folder) for _ in range(drivers)]
    killed = 0
    while any(process.poll() is None for process in running) or not _is_done(folder):
        if killed < kills:
            time.sleep(rng.uniform(0.5, longest_s))
            alive = [psutil.Process(process.pid) for process in running if process.poll() is None]
            family = [one for process in alive for one in (process, *process.children(recursive=True))]
            orphans = [
                process
                for process in psutil.process_iter(["cmdline"])
                if str(folder) in (process.info["cmdline"] or ()) and process not in family
            ]
            victims = [*family, *orphans]
            if victims:
                rng.choice(victims).kill()
                killed += 1
                if killed == kills // 2:
                    cut_short(folder, rng)
        else:
            time.sleep(0.5)
        running = [process for process in running if process.poll() is None]
        while len(running) < drivers and not _is_done(folder):
            running.append(driver(folder))
    return killed


def cut_short(folder: Path, rng: random.Random) -> None:
    """Truncate one of the files of results; the next driver that starts finds it."""
    done = sorted((folder / "results").rglob("*.parquet"))
    if done:
        path = rng.choice(done)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _is_done(folder: Path) -> bool:
    progress = lensplug.Study(folder).progress()
    return bool(len(progress)) and bool(((progress.done + progress.failed) == progress.examples).all())


def differences(folder: Path, other: Path) -> dict[str, int]:
    """What is lost, doubled or different between the results of two folders."""
    found = {"rows": 0, "distinct": 0, "missing": 0, "different": 0, "chunks": 0}
    tables = []
    for one in (folder, other):
        files = sorted(path for path in (one / "results").rglob("*.parquet"))
        tables.append({path.name: pq.read_table(path) for path in files})
    found["chunks"] = len(tables[0])
    ids = [identifier for table in tables[0].values() for identifier in table["id"].to_pylist()]
    found["rows"], found["distinct"] = len(ids), len(set(ids))
    found["missing"] = len({one for table in tables[1].values() for one in table["id"].to_pylist()} - set(ids))
    same = ["attempts", "seconds", "node"]
    for name, table in tables[1].items():
        if name in tables[0]:
            first, second = (one.drop_columns(same) for one in (tables[0][name], table))
            found["different"] += not all(_same(first[name], second[name]) for name in first.column_names)
    for path in (other / "results").rglob("*.safetensors"):
        twin = folder / "results" / path.relative_to(other / "results")
        found["different"] += not (twin.exists() and twin.read_bytes() == path.read_bytes())
    return found


def _same(column: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns are equal bit for bit; NaN is equal to itself."""
    first, second = (one.combine_chunks() for one in (column, other))
    while pa.types.is_list(first.type):
        if not first.value_lengths().equals(second.value_lengths()):
            return False
        first, second = first.flatten(), second.flatten()
    if not pa.types.is_floating(first.type):
        return bool(first.equals(second))
    return np.asarray(first).tobytes() == np.asarray(second).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--drivers", type=int, default=2)
    parser.add_argument("--longest", type=float, default=12.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    root = Path(tempfile.mkdtemp(prefix="killed-studies-"))
    scenes = root / "scenes"
    pictures(scenes, arguments.examples)
    (scenes / "ring" / "broken.png").write_bytes(b"no picture")
    start = time.perf_counter()
    quiet = study_of(root / "quiet", scenes, 64)
    quiet.run()
    quiet_s = time.perf_counter() - start
    start = time.perf_counter()
    disturbed = study_of(root / "killed", scenes, 64)
    poisoned = next(scenes.rglob("0*.png"))
    disturbed.add(pd.DataFrame({"prompt": [POISON], "image": [str(poisoned)]}))
    killed = killed_until_done(root / "killed", arguments.kills, arguments.drivers, rng, arguments.longest)
    killed_s = time.perf_counter() - start
    found = differences(root / "killed", root / "quiet")
    failed = disturbed.failures()
    table = Table(title=f"{arguments.examples} scenes, {killed} kills, {arguments.drivers} drivers of 2 workers")
    for column in ("what", "found", "expected"):
        table.add_column(column)
    expected = arguments.examples + 2
    table.add_row("rows", str(found["rows"]), str(expected))
    table.add_row("distinct", str(found["distinct"]), str(expected))
    table.add_row("missing", str(found["missing"]), "0")
    table.add_row("files that differ from the undisturbed", str(found["different"]), "0")
    table.add_row("failed", ", ".join(sorted(failed.error_type)), "KilledItsProcess, LensplugError")
    table.add_row("seconds, undisturbed in one process", f"{quiet_s:.0f}", "")
    table.add_row("seconds, killed", f"{killed_s:.0f}", "")
    Console(width=100).print(table)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
