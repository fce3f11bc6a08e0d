"""What the benchmarks share: turns of several ways in one process, peak memory in a process of its own, one core."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch


def setting(length: int) -> tuple[Any, Any]:
    """The lens of a LLaVA-OneVision of 0.5B size with random weights, and inputs of so many tokens."""
    from wrap import build

    import lensplug

    torch.manual_seed(0)
    lens = lensplug.wrap(build(), check=False)
    return lens, lens.encode({"input_ids": torch.randint(0, 100_000, (1, length))})


def seconds(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median time of each way; they take turns, after one for warming up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if turn:
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def peak(way: Callable[[], Any]) -> int:
    """Memory of one call above what was there before, in bytes."""
    process, seen, ended = psutil.Process(), [], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            seen.append(process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.no_grad():
        way()
    ended.set()
    watcher.join()
    return max([before, *seen]) - before


def measured(file: str, length: int) -> tuple[dict[str, float], dict[str, int]]:
    """The seconds of every way, all in one process, and the bytes of each in a process of its own."""
    times = _in_a_process(file, "seconds", length)
    return times, {name: _in_a_process(file, "peak", length, name) for name in times}


def answer(modes: Callable[[Any, Any], Mapping[str, Callable[[], Any]]], peak_of: Any, rounds: int) -> bool:
    """In one of these processes, print what was asked for; False where nobody asked."""
    if sys.argv[1:2] == ["seconds"]:
        print(json.dumps(seconds(modes(*setting(int(sys.argv[2]))), rounds)))
    elif sys.argv[1:2] == ["peak"]:
        print(json.dumps(peak_of(int(sys.argv[2]), sys.argv[3])))
    return sys.argv[1:2] in (["seconds"], ["peak"])


def _in_a_process(file: str, *arguments: Any) -> Any:
    """What a benchmark's file prints last, as JSON, when it is called with arguments."""
    run = subprocess.run([sys.executable, file, *map(str, arguments)], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{file} {' '.join(map(str, arguments))} ended with {run.returncode}:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])
