"""What a door shows, and what it costs to open: names are imported when used, TransformerLens when it wraps."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import lensplug

PUBLIC: dict[str, list[str]] = {}
"""Door -> its public names, one a line in `public_names.txt`."""
for line in (Path(__file__).parent / "public_names.txt").read_text(encoding="utf-8").splitlines():
    if line.startswith(" "):
        PUBLIC[[*PUBLIC][-1]].append(line.strip())
    elif line and not line.startswith("#"):
        PUBLIC[line] = []
HEAVY = ("torch", "transformers", "transformer_lens", "pandas", "plotly", "torchvision")


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh Python has imported after running it."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(shown.stdout.split())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_door_shows_its_public_names_and_no_others(name):
    door = import_module(name)
    assert dir(door) == PUBLIC[name]
    for each in dir(door):
        assert getattr(door, each) is not None


def test_a_function_is_not_hidden_by_the_module_of_its_name():
    """`import lensplug.analysis.attention_rollout` would put the module in the function's place."""
    code = """
import importlib, pathlib, types
for name in ("lensplug.analysis", "lensplug.views"):
    door = importlib.import_module(name)
    for path in pathlib.Path(door.__file__).parent.glob("*.py"):
        importlib.import_module(name + "." + path.stem)
    modules = [public for public in dir(door) if isinstance(getattr(door, public), types.ModuleType)]
    assert not modules, modules
"""
    loaded_by(code)


@pytest.mark.parametrize(
    "code", ["from lensplug import analysis, views", "import lensplug.app.cli", "from lensplug import LensplugError"]
)
def test_nothing_heavy_is_imported_by(code):
    assert loaded_by(code) == set()


def test_reading_a_cache_does_not_import_transformer_lens():
    code = (
        "from lensplug import analysis, views\nfor door in (analysis, views):\n  [getattr(door, n) for n in dir(door)]"
    )
    assert loaded_by(code) & {"transformer_lens", "transformers", "torchvision"} == set()


def test_an_analysis_is_known_by_name_before_it_is_imported(monkeypatch):
    from lensplug.running.caching import _analyses

    monkeypatch.delitem(vars(lensplug.analysis), "logit_lens", raising=False)
    analyses: list[Any] = _analyses("logit_lens")
    assert [one.__name__ for one in analyses] == ["logit_lens"]


def test_the_version_is_said_once_for_the_package():
    from importlib.metadata import version

    assert version("lensplug") == lensplug.__version__


def test_types_and_names_agree():
    """The stub that editors read has no name that is not there, and names itself what it imports."""
    stub = ast.parse((Path(lensplug.__file__).parent / "__init__.pyi").read_text())
    names = [alias for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for alias in names)
    assert sorted(alias.name for alias in names) == dir(lensplug)
