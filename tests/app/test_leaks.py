"""What may leave: pages, results, saved objects and notebooks hold no path, no user, no host, and nothing of media but
what the model saw. Searched raw, and in all that can be decoded from it (tests/support/leaks.py)."""

from __future__ import annotations

import base64
import dataclasses
import getpass
import gzip
import io
import json
import pickle
import platform
import random
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import soundfile
from PIL import Image, ImageCms, PngImagePlugin
from support.html_page import Parsed
from support.leaks import where

import lensplug
from lensplug.app.report import report
from lensplug.media import load_image, load_sound
from lensplug.tiny import CHECKPOINTS
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice
from lensplug.views.overlays.overlay import data_url

SECRET = "zqsecret"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A folder whose path, and a machine whose user and name, are secret."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME", "HOSTNAME", "COMPUTERNAME"):
            patch.setenv(name, SECRET)
        for module, name in ((socket, "gethostname"), (platform, "node"), (getpass, "getuser")):
            patch.setattr(module, name, lambda: SECRET)
        folder = tmp_path_factory.mktemp("any") / f"user-{SECRET}" / f"folder-{SECRET}"
        folder.mkdir(parents=True)
        yield folder


def marked_picture(folder: Path, ending: str) -> Path:
    """Its author, its place, a comment, a profile, a thumbnail: all secret."""
    picture = draw_scene(random.Random(3), size=(96, 96), color="red").image
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x9C9C] = SECRET, SECRET, SECRET.encode("utf-16-le")
    exif.get_ifd(0x8825)[29] = SECRET
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + SECRET.encode()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", SECRET, zip=True)
    text.add_itxt("XML:com.adobe.xmp", SECRET)
    options: dict[str, Any] = {
        "exif": exif,
        "icc_profile": profile,
        "comment": SECRET.encode(),
        "pnginfo": text,
        "lossless": True,
    }
    path = folder / f"photo-{SECRET}.{ending}"
    picture.save(path, **options)
    return path


def marked_sound(folder: Path, ending: str, sound) -> Path:
    path = folder / f"voice-{SECRET}.{ending}"
    with soundfile.SoundFile(path, "w", sound.sampling_rate, 1) as file:
        file.title = file.artist = file.comment = SECRET
        file.write(sound.waveform.numpy())
    return path


@pytest.fixture(scope="module")
def of_picture(marked):
    shutil.copytree(CHECKPOINTS / "llava-onevision", marked / "image-model")
    lens = lensplug.load(marked / "image-model", device="cpu", dtype="float32")
    return report(lens, "What is the color? Answer single word.", images=[marked_picture(marked, "jpg")])


@pytest.fixture(scope="module")
def of_sound(marked):
    shutil.copytree(CHECKPOINTS / "audio-llama", marked / "sound-model")
    lens = lensplug.load(marked / "sound-model", device="cpu", dtype="float32")
    voice = make_voice(random.Random(3), emotion="happy", place="late", transcript=True)
    path = marked_sound(marked, "mp3", load_sound(voice.audio))
    return report(lens, voice.prompt("sound"), audio=[path])


@pytest.fixture(scope="module", params=["of_picture", "of_sound"])
def made(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def without_scripts(made):
    """The page with pictures in place of what moves; it takes seconds to draw."""
    pytest.importorskip("matplotlib")
    return made.page.to_html(static=True)


def test_a_page_holds_no_secret(made):
    assert not where(SECRET, made.page.to_html().encode())


def test_a_page_without_scripts_holds_no_secret_and_no_path(without_scripts):
    for word in (SECRET, "matplotlib.org", str(ROOT).lower(), "dc:date"):
        assert not where(word, without_scripts.encode()), word


def test_nothing_runs_in_a_page_without_scripts_and_each_part_is_shown(made, without_scripts):
    parsed = Parsed(without_scripts)
    assert len(without_scripts) < 3_000_000
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "iframe", "object", "embed", "link")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert not [value for value in attributes.values() if value and "javascript:" in value.lower()]
        if tag in ("img", "audio"):
            assert attributes["src"].startswith("data:")
        if tag == "img":
            assert len(attributes["alt"]) > 10
    assert "script-src 'none'" in without_scripts and "unsafe-inline" not in without_scripts
    parts = re.findall(r'<div class="part(?: row)?">(.*?)(?=<div class="part|</section>)', without_scripts, re.DOTALL)
    assert len(parts) == sum(len(section.parts) for section in made.page.sections)
    assert all("<img" in part or "<span" in part or "<audio" in part for part in parts)


def test_no_result_holds_a_secret_in_any_form(made):
    parts = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    for name, result in parts.items():
        forms = {"repr": repr(result).encode(), "str": str(result).encode(), "pickle": pickle.dumps(result)}
        if hasattr(result, "provenance"):
            forms["provenance"] = repr(result.provenance).encode()
        if hasattr(result, "to_dataframe"):
            forms["table"] = result.to_dataframe().to_csv().encode()
        if hasattr(result, "_repr_mimebundle_"):
            forms["notebook"] = json.dumps(result._repr_mimebundle_()).encode()
        for form, data in forms.items():
            assert not where(SECRET, data), (name, form)


def test_each_picture_of_a_page_can_be_shown_alone(made):
    for section in made.page.sections:
        for part in section.parts:
            shown = part.to_html(include_plotlyjs=False) if isinstance(part, go.Figure) else part._repr_html_()
            assert not where(SECRET, shown.encode()) and not where(SECRET, pickle.dumps(part)), section.title


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp", "tif"])
def test_a_picture_keeps_its_pixels_alone(marked, ending):
    path = marked_picture(marked, ending)
    assert where(SECRET, path.read_bytes()) or where(SECRET, repr(Image.open(path).info).encode())
    for given in (path, Image.open(path), path.read_bytes()):
        loaded = load_image(given)
        assert not loaded.info and not where(SECRET, pickle.dumps(loaded))
        assert not where(SECRET, data_url(loaded).encode())
    assert Image.open(path).info  # what the user has is not touched


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_a_sound_keeps_its_samples_alone(marked, ending):
    path = marked_sound(marked, ending, load_sound((np.full(8000, 0.1, np.float32), 8000)))
    assert where(SECRET, path.read_bytes())
    assert not where(SECRET, pickle.dumps(load_sound(path)))


def test_the_search_finds_what_is_packed():
    """In a base64 array, a script of JSON, a gzip, a PNG's compressed text, a JPEG's comment."""
    png, jpeg, text = io.BytesIO(), io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("Author", SECRET, zip=True)
    Image.new("RGB", (4, 4)).save(png, "PNG", pnginfo=text)
    Image.new("RGB", (4, 4)).save(jpeg, "JPEG", comment=SECRET.encode())
    for data in (png.getvalue(), jpeg.getvalue(), gzip.compress(SECRET.encode()), SECRET.upper().encode("utf-16-le")):
        packed = base64.b64encode(b"0" * 24 + data if data[:1] not in b"\x89\xff\x1f" else data)
        assert where(SECRET, b'<script>{"bdata": "' + packed.replace(b"/", b"\\u002f") + b'"}</script>')
    assert where(SECRET, "".join(f"\\u{ord(one):04x}" for one in SECRET).encode())
    assert not where(SECRET, b"nothing")


PATHS = re.compile(r"(?:/home/|/Users/|/root/|/tmp/|/work/|[A-Z]:\\\\Users)[\w.-]+")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_hold_no_path_and_no_widget_state(path):
    text = path.read_text(encoding="utf-8")
    assert not PATHS.findall(text)
    assert "widgets" not in json.loads(text)["metadata"]
    for start in ("/home/", "/users/", "/root/"):
        assert not where(start, text.encode())
