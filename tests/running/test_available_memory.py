"""Free memory within the limits of a job."""

from __future__ import annotations

import psutil
import torch

from lensplug.running import available_memory


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def free_with(tmp_path, monkeypatch, entries):
    """What is free to a process that is in these control groups."""
    (tmp_path / "entries").write_text(entries)
    monkeypatch.setattr(available_memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(available_memory, "OWN", tmp_path / "entries")
    return available_memory.free_bytes(torch.device("cpu"))


def test_the_smallest_limit_on_the_way_up_counts(tmp_path, monkeypatch):
    group(tmp_path / "job", memory__max="3000\n", memory__current="1000\n", memory__stat="anon 5\ninactive_file 200\n")
    group(tmp_path / "job/step", memory__max="max\n", memory__current="900\n", memory__stat="inactive_file 0\n")
    assert free_with(tmp_path, monkeypatch, "0::/job/step\n") == 2200


def test_the_old_kind_of_limit(tmp_path, monkeypatch):
    limits = {"memory__limit_in_bytes": "5000", "memory__usage_in_bytes": "4000"}
    group(tmp_path / "memory/slurm/job", **limits, memory__stat="total_inactive_file 10\n")
    assert free_with(tmp_path, monkeypatch, "3:cpu,cpuacct:/other\n4:memory:/slurm/job\n") == 1010


def test_without_groups_the_machine_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(available_memory, "OWN", tmp_path / "none")
    assert 0.5 < available_memory.free_bytes(torch.device("cpu")) / psutil.virtual_memory().available < 2
