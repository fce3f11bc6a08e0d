"""What cannot be written is refused before anything is computed, and leaves nothing behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lensplug import LensplugError
from lensplug.app.cli import app
from lensplug.audio_llama.convert import convert
from lensplug.files.writable import file_to_write, folder_to_write
from lensplug.views.page.page import Index, Page

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it has no such files")


def places(tmp_path):
    (tmp_path / "file").write_text("kept")
    return {
        "folder": (tmp_path, "is a folder, and a file is to be written"),
        "folder to be": (f"{tmp_path}/new/", "is a folder, and a file is to be written"),
        "nothing": ("", "is a folder, and a file is to be written"),
        "below a file": (tmp_path / "file" / "page.html", "file' is no folder"),
        "long": (tmp_path / ("x" * 300), "cannot be written: File name too long"),
        "device": ("/dev/null", "is a device, and a file is to be written"),
        "no disk": ("/proc/page.html", "cannot be written: "),
    }


@LINUX
@pytest.mark.parametrize("where", ["folder", "folder to be", "nothing", "below a file", "long", "device", "no disk"])
def test_files_that_cannot_be_written(tmp_path, monkeypatch, where):
    """Also by root, whom permissions do not stop; no page is made and no model is loaded before."""
    path, message = places(tmp_path)[where]
    monkeypatch.setattr(Page, "to_html", lambda self: pytest.fail("the page is made"))
    monkeypatch.setattr("lensplug.load", lambda *args, **kwargs: pytest.fail("the model is loaded"))
    for save in (Page("", (), ()).save, Index("", "", ()).save):
        with pytest.raises(LensplugError, match=message):
            save(path)
    if where == "folder to be":
        return  # the command line takes the slash away: a file
    result = CliRunner().invoke(app, ["report", "--model", "x", "--prompt", "x", "--out", str(path)])
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert {file.name for file in tmp_path.iterdir()} == {"file"} and (tmp_path / "file").read_text() == "kept"


@LINUX
@pytest.mark.parametrize("where", ["/dev/null", "/proc/new", "file", "file/new"])
def test_folders_that_cannot_be_written(tmp_path, monkeypatch, where):
    (tmp_path / "file").write_text("kept")
    path = where if where.startswith("/") else tmp_path / where
    monkeypatch.setattr("lensplug.tiny.llava_onevision", lambda **kwargs: pytest.fail("the model is loaded"))
    with pytest.raises(LensplugError, match="is a file, and a folder|cannot be written"):
        convert("base", "acoustic", tmp_path / "best_model.pth", path)
    result = CliRunner().invoke(app, ["demo", "--out", str(path)])
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_what_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert file_to_write("new/folders/page.html") == Path("new/folders/page.html")
    assert folder_to_write("~/new") == tmp_path / "new" and file_to_write("~/page.html").parent == tmp_path
    assert not list(tmp_path.iterdir()), "asking leaves nothing"
    Index("old", "", ()).save("page.html")
    assert Index("new", "", ()).save("page.html").read_text(encoding="utf-8").count("<title>new") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_without_permission(tmp_path):
    (tmp_path / "page.html").write_text("kept")
    (tmp_path / "page.html").chmod(0o444)
    with pytest.raises(LensplugError, match="read-only"):
        file_to_write(tmp_path / "page.html")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(LensplugError, match="Permission denied"):
            file_to_write(tmp_path / "other.html")
    finally:
        tmp_path.chmod(0o755)
