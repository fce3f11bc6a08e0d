"""How much memory is free, on a device or for this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """What can still be allocated there: of a CUDA device, or of the host within the limits of its job.

    Clusters and containers give a job less than the machine has; the kernel ends a process that takes more.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return _within_the_job(int(psutil.virtual_memory().available))


def _within_the_job(free: int) -> int:
    """What is free to this process, of what is free on the machine: the room below each limit of its control groups.

    Linux, version 2 or 1; elsewhere there are none.
    """
    try:
        entries = [line.split(":", 2) for line in _text(str(OWN)).splitlines()]
    except OSError:
        return free
    for _, controllers, path in entries:
        if controllers == "":
            root, limit, usage, cached = str(CGROUPS), "memory.max", "memory.current", "inactive_file "
        elif "memory" in controllers.split(","):
            root, limit, usage = f"{CGROUPS}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file "
        else:
            continue
        for group in _up_to(root, path):
            try:
                if (most := _text(f"{group}/{limit}").strip()) == "max":
                    continue
                room = int(most) - int(_text(f"{group}/{usage}"))
                if room >= free:
                    continue
                # Files that the kernel keeps to read again are counted as used, and given up first.
                stat = _text(f"{group}/memory.stat").splitlines()
                room += sum(int(line.split()[1]) for line in stat if line.startswith(cached))
            except (OSError, ValueError):
                continue  # the group of a machine outside this container, or one without a limit of its own
            free = min(free, room)
    return free


def _up_to(root: str, path: str) -> Iterator[str]:
    """A control group and its parents."""
    path = path.strip("/")
    while path:
        yield f"{root}/{path}"
        path = path.rpartition("/")[0]
    yield root


def _text(path: str) -> str:
    """What a small file says. Before every run: `Path.read_text` takes several times as long as the kernel."""
    with open(path, "rb", buffering=0) as file:
        return file.read().decode()
