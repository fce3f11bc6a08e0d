"""The files of a study: a folder of the operating system's and file systems of pyarrow's pass the same tests."""

from __future__ import annotations

import errno
import os
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, _MockFileSystem

from lensplug import LensplugError
from lensplug.files.atomic_write import UNFINISHED
from lensplug.study.arrow_folder import ArrowFolder
from lensplug.study.local_folder import LocalFolder
from lensplug.study.storage import Storage, storage_at

KINDS = ("local", "arrow local", "arrow memory", "s3")


@pytest.fixture(params=KINDS)
def storage(request, tmp_path):
    if request.param == "local":
        return LocalFolder(tmp_path / "study", "study")
    if request.param == "arrow local":
        return ArrowFolder(LocalFileSystem(), str(tmp_path / "study"), "study")
    if request.param == "arrow memory":
        return ArrowFolder(_MockFileSystem(current_time=datetime.now(timezone.utc)), "bucket/study", "study")
    return storage_at(request.getfixturevalue("bucket"))


def test_files_are_written_listed_read_and_deleted(storage):
    assert isinstance(storage, Storage)
    assert storage.names("") == [] and storage.names("results/x") == [] and not storage.exists("study.json")
    with pytest.raises(FileNotFoundError):
        storage.read("study.json")
    storage.write("study.json", b"{}")
    storage.write("results/pass/a.parquet", b"one")
    storage.write("results/pass/a.parquet", b"two")
    storage.note("claims/pass/a", b"me")
    assert storage.names("") == ["claims", "results", "study.json"] and storage.names("results") == ["pass"]
    assert storage.names("results/pass") == ["a.parquet"] and storage.names("study.json") == []
    assert storage.read("results/pass/a.parquet") == b"two" and storage.read("claims/pass/a") == b"me"
    assert storage.exists("study.json") and not storage.exists("results/pass/b.parquet")
    storage.remove("claims/pass/a")
    storage.remove("claims/pass/a")
    assert storage.names("claims/pass") == [] and not storage.exists("claims/pass/a")


def test_of_several_who_create_or_rename_one_does(storage):
    assert storage.create("claims/pass/a", b"first") and not storage.create("claims/pass/a", b"second")
    assert storage.read("claims/pass/a") == b"first"
    assert storage.rename("claims/pass/a", "claims/pass/b") and not storage.rename("claims/pass/a", "claims/pass/c")
    assert storage.names("claims/pass") == ["b"] and storage.read("claims/pass/b") == b"first"


def test_ages_are_in_seconds_by_the_clock_of_the_files(storage, monkeypatch):
    assert storage.age("claims/a") == float("inf")
    storage.note("claims/a", b"me")
    assert -2 < storage.age("claims/a") < 5
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + 3600)  # this machine's clock is an hour ahead
    storage._ahead = None
    assert -2 < storage.age("claims/a") < 5 or isinstance(getattr(storage, "file_system", None), _MockFileSystem)


@pytest.mark.parametrize("where", ["local", "arrow"])
def test_what_was_never_finished_is_deleted_by_its_age(where, tmp_path):
    plain = LocalFolder(tmp_path, "study")
    storage = plain if where == "local" else ArrowFolder(LocalFileSystem(), str(tmp_path), "study")
    storage.write("results/a", b"")
    old, new = tmp_path / "results" / f"{UNFINISHED}old", tmp_path / "results" / f"{UNFINISHED}new"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    assert storage.names("results") == ["a"]
    storage.remove_abandoned()
    assert not old.exists() and new.exists() and storage.names("results") == ["a"]


def test_a_file_of_an_arrow_folder_is_never_seen_unfinished(tmp_path):
    storage = ArrowFolder(LocalFileSystem(), str(tmp_path), "study")
    seen: set[int] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.update(path.stat().st_size for path in tmp_path.glob("chunk*"))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(30):
        storage.write("chunk", b"x" * 2_000_000)
    stop.set()
    thread.join()
    assert seen <= {2_000_000}


def test_an_upload_that_is_interrupted_leaves_nothing():
    """As Ctrl-C between opening and writing: closing a stream makes an object of what it has."""
    storage = ArrowFolder(_MockFileSystem(), "bucket/study", "study")

    class Interrupted:
        def __init__(self, stream):
            self.stream = stream

        def write(self, content):
            self.stream.write(content[:3])
            raise KeyboardInterrupt

        def close(self):
            self.stream.close()

    class FileSystem:
        type_name = "s3"

        def __getattr__(self, name):
            return getattr(storage_file_system, name)

        def open_output_stream(self, path, **options):
            return Interrupted(storage_file_system.open_output_stream(path, **options))

    storage_file_system = storage.file_system
    storage_file_system.create_dir("bucket/study/results")
    storage.file_system = FileSystem()
    with pytest.raises(KeyboardInterrupt):
        storage.write("results/chunk", b"content")
    assert not storage.exists("results/chunk")


def test_folders_without_hard_links_and_answers_that_were_lost(tmp_path, monkeypatch):
    storage = LocalFolder(tmp_path, "study")
    link = os.link

    def none(*paths):
        raise OSError(errno.EPERM, "no links here")

    def unanswered(source, target):
        link(source, target)
        raise FileExistsError  # as NFS answers the second of two requests for one link

    monkeypatch.setattr("os.link", none)
    assert storage.create("a", b"first") and not storage.create("a", b"second")
    monkeypatch.setattr("os.link", unanswered)
    assert storage.create("b", b"first")
    monkeypatch.setattr("os.link", link)
    assert not storage.create("b", b"second") and storage.read("b") == storage.read("a") == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_note_is_lost_on_a_full_disk_and_nothing_else(tmp_path, monkeypatch):
    storage = LocalFolder(tmp_path, "study")
    storage.note("claims/a", b"before")
    write = Path.write_bytes

    def full(path, content):
        write(path, content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    storage.note("claims/a", b"after")
    assert storage.read("claims/a") == b"before" and os.listdir(tmp_path / "claims") == ["a"]


def test_addresses(tmp_path):
    storage = storage_at(f"file://{tmp_path}/with%20space")
    assert isinstance(storage, LocalFolder) and storage.path == tmp_path / "with space"
    storage.write("a", b"")
    assert storage_at(storage.address).names("") == ["a"]
    with pytest.raises(LensplugError, match="is not an address of a file system that pyarrow opens"):
        storage_at("ftp://host/study")
    with pytest.raises(LensplugError, match="names no folder"):
        storage_at("s3://")


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA:hunter2@bucket/study",
        "s3://bucket/study?secret_key=hunter2&region=x",
        "abfs://container@account.dfs.core.windows.net/study?sas_token=hunter2",
        "gs://bucket/study?access_token=hunter2",
    ],
)
def test_secrets_are_refused_in_addresses_and_not_repeated(address):
    with pytest.raises(LensplugError, match="has a password or key in it") as caught:
        storage_at(address)
    assert "hunter2" not in str(caught.value) and "AKIA" not in str(caught.value)


def test_what_a_file_system_says_is_a_sentence():
    class Refusing:
        type_name = "s3"

        def __getattr__(self, name):
            def refuse(*arguments, **options):
                raise OSError("AWS Error ACCESS_DENIED")

            return refuse

    storage = ArrowFolder(Refusing(), "bucket/study", "s3://bucket/study")
    for call in (
        lambda: storage.names("results"),
        lambda: storage.read("study.json"),
        lambda: storage.write("a", b""),
        lambda: storage.exists("a"),
        lambda: storage.rename("a", "b"),
        lambda: storage.remove("a"),
    ):
        with pytest.raises(LensplugError, match=r"s3://bucket/study.* cannot be .*ACCESS_DENIED"):
            call()
    storage.note("a", b"")  # may be lost
