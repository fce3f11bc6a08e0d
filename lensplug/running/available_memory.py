"""How much memory is free, on a device or for this process."""

from __future__ import annotations

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
    return min([int(psutil.virtual_memory().available), *_left_to_the_job()])


def _left_to_the_job() -> list[int]:
    """The room below each limit of this process's control groups (Linux, version 2 or 1); none elsewhere."""
    left = []
    try:
        entries = [line.split(":", 2) for line in OWN.read_text().splitlines()]
    except OSError:
        return []
    for _, controllers, path in entries:
        if controllers == "":
            root, limit, usage, cached = CGROUPS, "memory.max", "memory.current", "inactive_file "
        elif "memory" in controllers.split(","):
            root, limit, usage = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file "
        else:
            continue
        own = root / path.lstrip("/")
        for group in [own, *own.parents]:
            try:
                most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
                stat = (group / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):
                continue  # the group of a machine outside this container, or one without a limit of its own
            if most != "max":
                # Files that the kernel keeps to read again are counted as used, and given up first.
                left.append(int(most) - used + sum(int(line.split()[1]) for line in stat if line.startswith(cached)))
    return left
