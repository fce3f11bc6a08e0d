"""Files appear whole or not at all, with the permissions of what they replace, and never through a link."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.interruptions import Interrupt, traced

from lensplug import LensplugError
from lensplug.files.atomic_write import ACCESS_LIST, UNFINISHED, opened, write_bytes, write_text
from lensplug.files.destinations import file_target
from lensplug.files.writable import file_to_write, folder_to_write

TESTS = Path(__file__).parents[1]
NOBODY = 65534
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


def unfinished(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(UNFINISHED)]


def fifo(path):
    os.mkfifo(path)


def socket_at(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a whole path is too long for it


STANDING = {
    "pipe": (fifo, "is a pipe, and a file is to be written"),
    "socket": (socket_at, "is a socket, and a file is to be written"),
    "folder": (os.mkdir, "is a folder, and a file is to be written"),
    "link to a file": (
        lambda path: path.symlink_to(path.with_name("other")),
        "is a link to '.*other'.*give the path of",
    ),
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link to 'nowhere'"),
    "link to a device": (lambda path: path.symlink_to("/dev/null"), "is a link to '/dev/null'"),
    "link to itself": (lambda path: path.symlink_to(path.name), "is a link to 'page.html'"),
    "link to a folder": (lambda path: path.symlink_to(path.parent), "is a folder"),
}


@pytest.mark.parametrize("kind", STANDING)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_only_regular_files_are_replaced(kind, when, tmp_path):
    make, message = STANDING[kind]
    target, other = tmp_path / "page.html", tmp_path / "other"
    other.write_text("kept")
    if when == "before":
        make(target)
        for ask in (file_target, file_to_write, lambda path: write_text(path, "new")):
            with pytest.raises(LensplugError, match=message):
                ask(target)
    else:
        with pytest.raises(LensplugError, match=message), opened(target) as file:
            file.write(b"new")
            make(target)
    assert other.read_text() == "kept" and {path.name for path in tmp_path.iterdir()} == {"other", "page.html"}
    assert not stat.S_ISREG(os.lstat(target).st_mode), "it is what it was"


def test_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write_text("~/new/folders/ü.html", "ä\n") == tmp_path / "new" / "folders" / "ü.html"
    assert (tmp_path / "new" / "folders" / "ü.html").read_bytes() == "ä\n".encode()
    write_bytes(tmp_path / "bytes", b"\0\xff")
    with opened(tmp_path / "bytes") as file:
        file.write(b"other")
        file.flush()
        assert (tmp_path / "bytes").read_bytes() == b"\0\xff", "readers meet the old one"
    assert (tmp_path / "bytes").read_bytes() == b"other"
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError, FileNotFoundError])
def test_what_breaks_off_leaves_the_old_one(error, tmp_path):
    """And the exception is the user's: a file that was not found was none of ours."""
    target = tmp_path / "page.html"
    for content in (None, "old"):
        if content:
            target.write_text(content)
        with pytest.raises(error), opened(target) as file:
            file.write(b"new")
            raise error
        assert [path.read_text() for path in tmp_path.iterdir()] == ([content] if content else [])


def test_interrupted_before_any_line(tmp_path):
    """Old or new, never half, and nothing beside it."""
    target = tmp_path / "page.html"
    with traced(counted := Interrupt(0, KeyboardInterrupt)):
        write_text(target, "old")
    assert counted.lines > 40
    after = set()
    for at in range(1, counted.lines + 1):
        with pytest.raises(KeyboardInterrupt), traced(Interrupt(at, KeyboardInterrupt)):
            write_text(target, "new" * at)
        assert [path.name for path in tmp_path.iterdir()] == ["page.html"], at
        after.add(target.read_text() == "new" * at)
    assert after == {True, False}


def test_interrupted_again_while_it_is_taken_away(tmp_path):
    for at in range(1, 20):
        second, before = Interrupt(at, KeyboardInterrupt), sys.gettrace()
        try:
            with pytest.raises(KeyboardInterrupt), opened(tmp_path / "page.html") as file:
                file.write(b"new")
                sys.settrace(second)
                raise KeyboardInterrupt
        finally:
            sys.settrace(before)
        assert not list(tmp_path.iterdir()), second.where
    assert second.lines > 10


def test_it_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    target, to_disk = tmp_path / "page.html", os.fsync
    found = []

    def seen(file):
        found.append((target.exists(), os.fstat(file).st_size))
        to_disk(file)

    monkeypatch.setattr(os, "fsync", seen)
    write_text(target, "new")
    assert found[0] == (False, 3) and found[1][0], "the file, then its folder"


@pytest.mark.parametrize("mode", [0o640, 0o600, 0o664, 0o604])
def test_the_mode_is_kept(mode, tmp_path):
    target = tmp_path / "page.html"
    target.write_text("old")
    target.chmod(mode)
    with opened(target) as file:
        (beside,) = unfinished(tmp_path)
        assert beside.stat().st_mode & 0o177 == 0, "nobody else reads it before it is known who may"
        file.write(b"new")
    assert target.stat().st_mode & 0o777 == mode and target.read_text() == "new"


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_process(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "page.html", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == mode


@ONLY_ROOT
def test_the_owner_is_kept(tmp_path):
    target = tmp_path / "page.html"
    target.write_text("old")
    os.chown(target, NOBODY, 1)
    target.chmod(0o640)
    write_text(target, "new")
    there = target.stat()
    assert (there.st_uid, there.st_gid, there.st_mode & 0o777) == (NOBODY, 1, 0o640)


@ONLY_ROOT
@pytest.mark.parametrize(("mode", "narrowed"), [(0o664, 0o644), (0o640, 0o600), (0o600, 0o600)])
def test_another_group_gets_no_more_than_everybody(mode, narrowed, tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("old")
    os.chown(target, NOBODY, 1)
    target.chmod(mode)
    monkeypatch.setattr(os, "fchown", lambda *_: (_ for _ in ()).throw(PermissionError))
    write_text(target, "new")
    assert (target.stat().st_uid, target.stat().st_mode & 0o777) == (0, narrowed)


def test_the_access_list_is_kept(tmp_path):
    """Its mask stands where the group's bits are: those alone would let the group read what it might not."""
    target = tmp_path / "page.html"
    target.write_text("old")
    entries = [(0x01, 6, -1), (0x02, 4, NOBODY), (0x04, 0, -1), (0x10, 4, -1), (0x20, 0, -1)]
    packed = [struct.pack("<HHI", tag, bits, who & 0xFFFFFFFF) for tag, bits, who in entries]
    access = struct.pack("<I", 2) + b"".join(packed)  # acl(5): owner, one user more, group, mask, everybody
    try:
        os.setxattr(target, ACCESS_LIST, access)
    except (OSError, AttributeError):
        pytest.skip("this file system has no access control lists")
    assert target.stat().st_mode & 0o777 == 0o640
    write_text(target, "new")
    assert os.getxattr(target, ACCESS_LIST) == access and target.read_text() == "new"


def test_names_beside_it_are_the_users(tmp_path):
    """`page.html.part` is no name of ours, a hard link keeps what it had, and a name may be the longest there is."""
    (tmp_path / "page.html").write_text("old")
    (tmp_path / "page.html.part").write_text("kept")
    os.link(tmp_path / "page.html", tmp_path / "linked.html")
    write_text(tmp_path / "page.html", "new")
    longest = "x" * os.pathconf(tmp_path, "PC_NAME_MAX")
    assert file_to_write(write_text(tmp_path / longest, "long"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "page.html": "new", "page.html.part": "kept", "linked.html": "old", longest: "long",
    }  # fmt: skip


@pytest.mark.parametrize("size", [200_000, 2000])
def test_a_disk_that_is_full(size, tmp_path):
    """In writing, or not before the last bytes leave the buffer."""
    target = tmp_path / "page.html"
    target.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(LensplugError, match="page.html' cannot be written: File too large"):
            write_text(target, "x" * size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_folder_that_is_gone_or_moved(tmp_path):
    with pytest.raises(LensplugError, match="cannot be written: No such file"), opened(tmp_path / "gone" / "a") as file:
        file.write(b"new")
        shutil.rmtree(tmp_path / "gone")
    assert not list(tmp_path.iterdir())
    with opened(tmp_path / "before" / "a") as file:
        (tmp_path / "before").rename(tmp_path / "after")
        file.write(b"new")
    assert [path.name for path in (tmp_path / "after").iterdir()] == ["a"] and not (tmp_path / "before").exists()


@ONLY_ROOT
@pytest.mark.parametrize("through", ["folder", "two links"])
def test_links_of_others_in_a_folder_for_everybody(through, tmp_path):
    """As the kernel does where it is told to (`fs.protected_symlinks`)."""
    shared, home = tmp_path / "tmp", tmp_path / "home"
    shared.mkdir()
    shared.chmod(0o1777)
    home.mkdir()
    (shared / "demo").symlink_to(home)
    if through == "two links":
        (tmp_path / "out").symlink_to("tmp/../tmp/demo")
    folder = shared / "demo" if through == "folder" else tmp_path / "out"
    assert folder_to_write(folder) == folder and write_text(folder / "sub" / "mine.html", "written").exists()
    os.chown(shared / "demo", NOBODY, NOBODY, follow_symlinks=False)
    for ask in (
        folder_to_write,
        lambda path: write_text(path / "new.html", "new"),
        lambda path: file_to_write(path / "a/b"),
    ):
        with pytest.raises(LensplugError, match="demo' is a link of another user"):
            ask(folder)
    assert [path.name for path in home.iterdir()] == ["sub"]
    shared.chmod(0o755)  # nobody else can put one there: it is the owner's business
    assert folder_to_write(folder) == folder


def test_several_processes_save_and_read():
    """`make stress` does a thousand."""
    command = [sys.executable, "-m", "support.concurrent_saves", "--saves", "80", "--as-text"]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=120)
    outcome = json.loads(done.stdout)
    assert done.returncode == 0 and outcome["saved"] == 80 and outcome["read"] > 10, outcome
