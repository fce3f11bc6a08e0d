"""A folder appears whole; what a killed process leaves says what it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.interruptions import Interrupt, traced

from lensplug import LensplugError
from lensplug.files.atomic_write import UNFINISHED
from lensplug.files.unfinished_folder import holds_files, leftovers, unfinished_folder

WRITES_FOR_EVER = """
import sys, time
from pathlib import Path
from lensplug.files.unfinished_folder import unfinished_folder
with unfinished_folder(Path(sys.argv[1])) as folder:
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(160_000_000)
    print("written", flush=True)
    time.sleep(600)
"""


def fill(out):
    with unfinished_folder(out) as folder:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(name)
    return out


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_appears_with_all_its_files(tmp_path):
    before = os.umask(0o027)
    try:
        fill(tmp_path / "new" / "model")
    finally:
        os.umask(before)
    assert files(tmp_path) == {"new/model/config.json", "new/model/model.safetensors"}
    assert (tmp_path / "new" / "model").stat().st_mode & 0o777 == 0o750
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_a_folder_that_is_there_stays_and_gets_the_configuration_last(tmp_path, monkeypatch):
    out, replace = tmp_path / "model", os.replace
    moved: list[str] = []
    out.mkdir(mode=0o700)
    (out / "notes").write_text("the user's")
    (out / "config.json").write_text("old")
    before = out.stat().st_ino

    def replaced(source, target):
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    fill(out)
    assert moved == ["model.safetensors", "config.json"] and out.stat().st_ino == before
    assert files(tmp_path) == {"model/notes", "model/config.json", "model/model.safetensors"}
    assert (out / "config.json").read_text() == "config.json"


@pytest.mark.parametrize("there", [False, True])
def test_interrupted_before_any_line(there, tmp_path):
    """Nothing, or all of it."""
    out = tmp_path / "model"
    with traced(counted := Interrupt(0, KeyboardInterrupt)):
        fill(tmp_path / "counted")
    found = set()
    for at in range(1, counted.lines + 30):
        if there:
            out.mkdir()
        interrupt = Interrupt(at, KeyboardInterrupt)
        try:
            with traced(interrupt):
                fill(out)
        except KeyboardInterrupt:
            pass
        assert {path.name for path in tmp_path.iterdir()} <= {"counted", "model"}, (at, interrupt.where)
        found.add(whole := tuple(sorted(files(out))))
        assert whole in ((), ("config.json", "model.safetensors")), (at, interrupt.where)
        for path in [*out.iterdir()] if out.exists() else ():
            path.unlink()
        if out.exists():
            out.rmdir()
    assert len(found) == 2


@pytest.mark.parametrize("there", [False, True])
def test_taken_meanwhile(there, tmp_path):
    """Both are kept: hours may be in either."""
    out = tmp_path / "model"
    if there:
        out.mkdir()
    with pytest.raises(LensplugError, match="another process wrote to .*model' meanwhile") as raised:
        with unfinished_folder(out) as folder:
            (folder / "config.json").write_text("mine")
            out.mkdir(exist_ok=True)
            (out / "config.json").write_text("theirs")
    assert (out / "config.json").read_text() == "theirs"
    assert (Path(str(raised.value).split("'")[-2]) / "config.json").read_text() == "mine"
    assert len(files(tmp_path)) == 2 and not leftovers(out)


@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_process_leaves_is_told(there, tmp_path):
    out = tmp_path / "a user's model"
    if there:
        out.mkdir()
    command = [sys.executable, "-c", WRITES_FOR_EVER, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        assert not leftovers(out), "it is at work"
        process.send_signal(signal.SIGKILL)
    (sentence,) = leftovers(out)
    assert f"{UNFINISHED}a user's model-" in sentence and "(0.2 GB) is what was left when" in sentence
    assert "no process works on it any more" in sentence
    assert not there or not holds_files(out), "it is no reason to refuse the folder"
    fill(out)
    assert len(files(out)) == (4 if there else 2), "and it is not deleted for the user"
    subprocess.run(sentence.split("delete it with: ")[1], shell=True, check=True)
    assert files(tmp_path) == {"a user's model/config.json", "a user's model/model.safetensors"}
    assert not leftovers(out)


def test_where_there_are_no_locks(tmp_path):
    (tmp_path / f"{UNFINISHED}model-1234").mkdir()
    (sentence,) = leftovers(tmp_path / "model")
    assert "unless a process still works on it, delete it with: rm -r " in sentence
