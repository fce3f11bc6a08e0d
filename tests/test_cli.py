"""The command line: what it prints and writes, and that errors are one sentence."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lensplug.cli import app
from lensplug.tiny import CHECKPOINTS

MODEL = str(CHECKPOINTS / "llava-onevision")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 50, 3), dtype=np.uint8)).save(path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_demo_prints_answer_layer_and_heads_and_writes_the_page(tmp_path):
    result = run("demo", "--out", tmp_path / "out", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "Answer:" in result.output and "becomes the top token after layer" in result.output
    assert "ten most image-specialised heads" in result.output
    page = tmp_path / "out" / "index.html"
    assert page.exists() and page.stat().st_size < 8_000_000


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
