"""The command line: what it prints and writes, and that errors are one sentence."""

import random
import shutil
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support.models import text_model
from typer.testing import CliRunner

import lensplug
from lensplug.app.cli import app
from lensplug.hf.prompts import as_the_model_reads
from lensplug.media import load_sound
from lensplug.tiny import CHECKPOINTS
from lensplug.tiny.image_model import build_tokenizer
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice

MODEL = str(CHECKPOINTS / "llava-onevision")
AUDIO = str(CHECKPOINTS / "audio-llama")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 50, 3), dtype=np.uint8)).save(path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_demo_prints_answers_layers_and_heads_and_writes_two_pages_and_an_index(tmp_path):
    result = run("demo", "--out", tmp_path / "out", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert result.output.count("Answer:") == 2 and result.output.count("becomes the top token after layer") == 2
    for medium in ("image", "audio"):
        assert f"The ten heads that look at the {medium} most" in result.output
        for column in ("mass on", "chance", "preference", "looks at", "prefers"):
            assert result.output.count(column) >= 2
    pages = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(pages) == {"index.html", "llava-onevision.html", "audio-llama.html"}
    assert max(path.stat().st_size for path in pages.values()) < 8_000_000
    index = pages["index.html"].read_text(encoding="utf-8")
    assert 'href="llava-onevision.html"' in index and 'href="audio-llama.html"' in index


@pytest.mark.parametrize("name", ["audio-llama.html", "index.html"])
def test_demo_computes_nothing_where_a_page_cannot_be_written(tmp_path, name):
    (tmp_path / name).mkdir()
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 2 and "is a folder, and a file is to be written" in result.output
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["photo.png", "model/config.json"])
def test_a_report_does_not_replace_what_it_is_about(tmp_path, photo, name):
    shutil.copytree(MODEL, tmp_path / "model")
    before = (tmp_path / name).read_bytes()
    options = ("--model", tmp_path / "model", "--image", photo, "--prompt", "What?", "--out", tmp_path / name)
    result = run("report", *options)
    assert result.exit_code == 2 and "would be replaced by it: give another --out" in result.output
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("~nobody-of-this-name/x.html", "who has no home here"),
        ("nowhere/", "is a folder, and a file"),
        ("", "is a folder"),
    ],
)
def test_paths_that_are_no_file(out, message, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("report", "--model", MODEL, "--image", photo, "--prompt", "What?", "--out", out)
    assert result.exit_code == 2 and message in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
    result = run("check", "--model", "~nobody-of-this-name/m", "--image", photo)
    assert result.exit_code == 2 and "has no home here" in result.output


def test_what_was_not_foreseen_is_one_sentence(photo, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("in \x1b[2J a model")

    def unreadable(*args, **options):
        raise PermissionError(13, "Permission denied", "weights")

    monkeypatch.setattr(lensplug, "load", unreadable)
    result = run("check", "--model", MODEL, "--image", photo)
    assert result.exit_code == 1 and "PermissionError, which was not foreseen: [Errno 13]" in result.output

    monkeypatch.setattr(lensplug, "load", broken)
    result = run("check", "--model", MODEL, "--image", photo)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert r"lensplug: ZeroDivisionError, which was not foreseen: in \x1b[2J a model." in result.output
    monkeypatch.setenv("LENSPLUG_TRACEBACK", "1")
    assert isinstance(run("check", "--model", MODEL, "--image", photo).exception, ZeroDivisionError)


@pytest.mark.parametrize(("ending", "rate", "channels"), [("wav", 44100, 2), ("mp3", 16000, 1), ("flac", 8000, 1)])
def test_report_on_a_sound(tmp_path, ending, rate, channels):
    voice = make_voice(random.Random(1), transcript=False)
    waveform = load_sound(voice.audio).at_rate(rate).waveform.numpy()
    soundfile.write(tmp_path / f"voice.{ending}", np.stack([waveform] * channels, axis=1), rate)
    out = tmp_path / "report.html"
    options = ("--model", AUDIO, "--audio", tmp_path / f"voice.{ending}", "--prompt", voice.prompt("sound"))
    result = run("report", *options, "--out", out, "--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert f"Answer: {voice.answer('sound')}" in result.output
    html = out.read_text(encoding="utf-8")
    assert "When in the sound" in html and (rate == 8000) == ("Resampled" not in html)


def test_report_on_a_video(tmp_path):
    scene = draw_scene(random.Random(3), size=(96, 96), color="red")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_image(scene.image)))
        container.mux(stream.encode(None))
    out = tmp_path / "report.html"
    options = ("--model", MODEL, "--video", tmp_path / "clip.mp4", "--prompt", "What is the color? Answer single word.")
    result = run("report", *options, "--out", out, "--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "Answer: Red" in result.output and "heads that look at the video most" in result.output
    html = out.read_text(encoding="utf-8")
    assert "Where in the video" in html and "7 (1.8 s)" in html


def test_report_on_words_alone_by_a_base_model(tmp_path):
    """No picture, no sound, no chat template."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    text_model("Llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    out = tmp_path / "report.html"
    result = run(
        "report", "--model", tmp_path / "base", "--prompt", "What is the color?", "--out", out, "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    html = out.read_text(encoding="utf-8")
    assert "What the answer came from" in html and "first position left out" in html
    assert "Gradient rollout into" in html and "lift over uniform attention" in html


def test_a_base_model_is_given_placeholders_before_the_prompt(photo):
    processor = SimpleNamespace(
        chat_template=None, tokenizer=SimpleNamespace(chat_template=None), image_token="<image>"
    )
    given = {"images": [photo, photo], "videos": None, "audio": None}
    assert as_the_model_reads(processor, "What?", **given) == "<image>\n<image>\nWhat?"
    assert as_the_model_reads(processor, "<image> and <image>", **given) == "<image> and <image>"
    processor.chat_template = "{{ messages }}"
    assert as_the_model_reads(processor, "What?", **given) == "What?"


def test_no_medium_is_one_sentence(tmp_path):
    result = run("report", "--model", AUDIO, "--prompt", "What?", "--out", tmp_path / "report.html")
    assert result.exit_code == 2 and "pass --image FILE, --video FILE or --audio FILE" in result.stderr
    assert not list(tmp_path.iterdir())


def test_report_writes_one_page(tmp_path, photo):
    out = tmp_path / "report.html"
    options = ("--model", MODEL, "--image", photo, "--prompt", "What is the shape?", "--out", out)
    result = run("report", *options, "--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert out.exists()


def test_check_says_that_both_agree(photo):
    result = run("check", "--model", MODEL, "--image", photo, "--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "agrees with LlavaOnevisionForConditionalGeneration" in " ".join(result.output.split())


def test_a_file_that_is_no_image_is_one_sentence_and_writes_nothing(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    out = tmp_path / "report.html"
    result = run("report", "--model", MODEL, "--image", text, "--prompt", "What?", "--out", out, "--device", "cpu")
    assert result.exit_code == 2
    assert "is not an image" in result.stderr and "Traceback" not in result.stderr
    assert not out.exists()


def test_a_model_that_is_not_there_is_one_sentence(photo, tmp_path):
    result = run("check", "--model", tmp_path / "nothing", "--image", photo)
    assert result.exit_code == 2 and "could not be loaded" in result.stderr


def test_versions_are_shown():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == f"lensplug {lensplug.__version__}"
    assert f"torch {torch.__version__.split('+')[0]}" in result.output
