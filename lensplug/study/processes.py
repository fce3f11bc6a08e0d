"""Which process this is, for others to see whether it is alive."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def this_process() -> dict[str, Any]:
    """What identifies this process: its machine, its number, and when it was started."""
    return {"node": socket.gethostname(), "space": _space(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_alive(described: Mapping[str, Any]) -> bool | None:
    """Whether the process that `this_process` described is alive; None if that cannot be seen from here.

    Processes of other machines and containers cannot be seen, also where they are called as this one is.
    """
    if described.get("node") != socket.gethostname() or described.get("space") != _space():
        return None
    try:
        process = psutil.Process(described["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(_started(process.pid) == described["started"])
    except psutil.AccessDenied:
        return None
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False


def _space() -> str:
    """The start of the machine, and where processes are numbered: a container numbers its processes itself."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> float:
    """When a process was started: on Linux in ticks since the machine was, which changes of its clock do not move."""
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return float(psutil.Process(pid).create_time())
