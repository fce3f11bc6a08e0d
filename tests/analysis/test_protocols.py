"""What analyses are given: the lens is that, for mypy too, and nothing is asked of it that no analysis reads."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lensplug
from lensplug.analysis import protocols
from lensplug.analysis.protocols import Core, EditedRuns, Lens, LensWithEdits
from lensplug.hf.language_core import LanguageCore
from lensplug.running import edited_runs

ANALYSES = Path(__file__).parents[2] / "lensplug" / "analysis"


def fits(lens: lensplug.MultimodalLens, core: LanguageCore, runs: edited_runs.EditedRuns) -> None:
    """For mypy: what analyses are told of a lens are its own signatures."""
    _told: tuple[Lens, LensWithEdits, Core, EditedRuns] = (lens, lens, core, runs)


def test_a_lens_is_what_analyses_are_given(lens):
    for protocol in (Lens, LensWithEdits):
        assert isinstance(lens, protocol)
    assert isinstance(lens.core, Core)


@pytest.mark.parametrize("protocol", [Lens, LensWithEdits, Core, EditedRuns])
def test_every_member_is_read_by_an_analysis(protocol):
    members = {*vars(protocol), *vars(protocol).get("__annotations__", ())}
    members = {name for name in members if not name.startswith("_")}
    read = set()
    for path in ANALYSES.rglob("*.py"):
        if path != Path(str(protocols.__file__)):
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert members and members <= read, members - read
