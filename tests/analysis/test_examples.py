"""The example in each analysis's docstring runs as it is printed."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest
from support.models import scene

import lensplug.analysis
from lensplug import analysis, views

FOLDER = Path(lensplug.analysis.__file__).parent
SECTIONS = ("When to use it:", "When not to use it:", "Example:")


def docstrings() -> dict[str, str]:
    """Name -> docstring of each module that defines an analysis or `heads_by_layer`."""
    found = {}
    public = set(dir(analysis)) | {"heads_by_layer"}
    for path in sorted(FOLDER.rglob("*.py")):
        if path.stem in public:
            found[path.stem] = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return found


DOCSTRINGS = docstrings()


def test_every_analysis_is_here():
    functions = {name for name in dir(analysis) if name == name.lower()}
    assert set(DOCSTRINGS) == functions | {"heads_by_layer"}


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_says_how_and_when(name):
    text = DOCSTRINGS[name]
    assert all(section in text for section in SECTIONS), name
    assert re.search(r"^1\. ", text, re.MULTILINE) and re.search(r"^2\. ", text, re.MULTILINE), name


@pytest.fixture(scope="module")
def cache(lens, inputs):
    _, cache = lens.run_with_cache(inputs)
    return cache


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_example_runs(name, lens, inputs, cache, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write a table
    example = textwrap.dedent(DOCSTRINGS[name].split("\nExample:\n", 1)[1])
    names = {"analysis": analysis, "views": views, "lens": lens, "inputs": inputs, "cache": cache}
    exec(compile(example, name, "exec"), {**names, "picture": picture, "other_picture": scene(96, 48, 1)})
