"""Code that comes with a model: run where the user says so, never otherwise, and nobody is asked."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from support.models import largest_difference, wrapped_logits
from transformers import dynamic_module_utils
from typer.testing import CliRunner

import lensplug
from lensplug import LensplugError
from lensplug.app.cli import app
from lensplug.model_files import remote_code
from lensplug.tiny import CHECKPOINTS

PACKAGE = Path(lensplug.__file__).parent
FAITHFUL = """
from pathlib import Path
from transformers import LlavaOnevisionForConditionalGeneration
Path({mark!r}).touch()

class Made(LlavaOnevisionForConditionalGeneration):
    pass
"""
OTHER = (
    FAITHFUL
    + """
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 3 * (output.logits / 3).tanh()
        return output
"""
)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a folder whose model is a class of its own; tells whether its code was run."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *question: pytest.fail("asked on the terminal"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    mark = tmp_path / "was_run"

    def make(code: str, **changes: object) -> Path:
        folder = shutil.copytree(CHECKPOINTS / "llava-onevision", tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        config |= {"architectures": ["Made"], "auto_map": {"AutoModelForImageTextToText": "modeling_made.Made"}}
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        (folder / "modeling_made.py").write_text(code.format(mark=str(mark)))
        return folder

    return make, mark


def test_run_where_the_user_says_so(made):
    make, mark = made
    lens = lensplug.load(make(FAITHFUL), device="cpu", dtype="float32", trust_remote_code=True)
    assert type(lens.hf_model).__name__ == "Made" and mark.exists()
    tokens = torch.arange(12)[None]
    expected = wrapped_logits(lensplug.tiny.llava_onevision(), tokens)
    assert largest_difference(wrapped_logits(lens, tokens), expected) < 1e-5


def test_code_that_computes_something_else_is_refused(made):
    make, mark = made
    with pytest.raises(LensplugError, match="DIFFERS from Made"):
        lensplug.load(make(OTHER), device="cpu", dtype="float32", trust_remote_code=True)
    assert mark.exists()


def test_not_run_otherwise(made):
    """Its configuration is of a kind that transformers knows: that class is taken."""
    make, mark = made
    lens = lensplug.load(make(FAITHFUL), device="cpu", dtype="float32")
    assert type(lens.hf_model) is transformers.LlavaOnevisionForConditionalGeneration and not mark.exists()


def test_a_configuration_of_its_own_is_refused_in_words(made):
    make, mark = made
    folder = make(FAITHFUL, model_type="made", auto_map={"AutoConfig": "modeling_made.Made"})
    with pytest.raises(LensplugError, match=r"code of its own: read it, and give trust_remote_code=True \(--trust-rem"):
        lensplug.load(folder, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("command", ["check", "report"])
def test_the_command_line(made, command, tmp_path, monkeypatch):
    make, mark = made
    asked = {}

    def load(name, **options):
        asked.update(options)
        raise LensplugError("enough")

    monkeypatch.setattr(lensplug, "load", load)
    arguments = [command, "--model", str(make(FAITHFUL)), "--prompt", "What?"]
    arguments += ["--out", str(tmp_path / "page.html")] if command == "report" else []
    for given, expected in (([], False), (["--trust-remote-code"], True)):
        assert CliRunner().invoke(app, [*arguments, *given]).exit_code == 2
        assert asked["trust_remote_code"] is expected


def test_nobody_is_asked_within_the_scope_alone(monkeypatch):
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    monkeypatch.setattr(builtins, "input", lambda *question: pytest.fail("asked on the terminal"))
    with remote_code.nobody_is_asked(), remote_code.nobody_is_asked():
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            dynamic_module_utils.resolve_trust_remote_code(None, "someone/model", False, True)
    assert before > 0 and dynamic_module_utils.TIME_OUT_REMOTE_CODE == before


LOADERS = ("from_pretrained", "from_config")
HAVE_NO_CODE = {"PeftModel"}
"""What has no such option: an adapter's weights on a model that is there."""


def test_every_call_of_a_loader_says_whether_code_may_run():
    found = 0
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "patches").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS):
                continue
            owner = ast.unparse(node.func.value)
            if owner.rpartition(".")[2] in HAVE_NO_CODE:
                continue
            found += 1
            said = {keyword.arg for keyword in node.keywords}
            spread = {ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None}
            assert "trust_remote_code" in said or "code" in spread, f"{path.name}, line {node.lineno}: {owner}"
    assert found >= 6


def test_pickles_are_opened_for_their_tensors_alone():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert said.get("weights_only") == "True", f"{path.name}, line {node.lineno}"
