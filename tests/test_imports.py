"""Who may import whom: the table of CONTRIBUTING.md, held against every import of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", re.MULTILINE)
MAY_IMPORT = {folder: set(allowed.split()) for folder, allowed in ROW.findall((ROOT / "CONTRIBUTING.md").read_text())}
EVERYBODY = {"errors"}
OUTSIDE = {
    "analysis": {"transformers", "plotly", "circuitsvis"},
    "patches": {"plotly", "circuitsvis"},
    "positions": {"transformers", "transformer_lens"},
    "views": {"transformers", "transformer_lens"},
}
"""Folder -> packages that it does without."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module: the folder (or module) right below lensplug that it is in, and its file."""
    for path in sorted((ROOT / "lensplug").rglob("*.py")):
        inside = path.relative_to(ROOT / "lensplug").parts
        if inside[0] != "patches":  # a link
            yield Path(inside[0]).stem, path
    for path in sorted((ROOT / "patches").rglob("*.py")):
        yield "patches", path


def imported(path: Path) -> set[str]:
    """The whole names of what a file imports anywhere in it, names within modules too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def folders_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("lensplug.")}


def test_every_folder_has_a_line():
    folders = {folder for folder, _ in modules()} - {"__init__", "__main__"} - EVERYBODY
    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_its_line_names(folder):
    used = set()
    for home, path in modules():
        if home == folder:
            others = folders_imported(path) - {folder} - EVERYBODY
            assert others <= MAY_IMPORT[folder], f"{path.relative_to(ROOT)} imports {others - MAY_IMPORT[folder]}"
            packages = {name.split(".")[0] for name in imported(path)}
            assert not packages & OUTSIDE.get(folder, set()), path.relative_to(ROOT)
            used |= others
    assert used == MAY_IMPORT[folder], f"the line names what is not imported: {MAY_IMPORT[folder] - used}"


def test_imports_run_one_way():
    arrows = networkx.DiGraph((folder, other) for folder, allowed in MAY_IMPORT.items() for other in allowed)
    assert networkx.is_directed_acyclic_graph(arrows)


def module_name(path: Path) -> str:
    """As it is imported: `lensplug.inputs.slicing`, `lensplug.patches.patch`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("lensplug", *parts) if parts[0] == "patches" else parts).removesuffix(".__init__")


def test_no_files_import_each_other():
    """Wherever an import stands: inside a function and for type checkers alone, too."""
    names = {module_name(path) for _, path in modules()}
    arrows = networkx.DiGraph()
    for _, path in modules():
        for name in imported(path):
            found = next((known for known in (name, name.rpartition(".")[0]) if known in names), None)
            if found not in (None, module_name(path)):
                arrows.add_edge(module_name(path), found)
    assert arrows.number_of_edges() > 500
    assert not [circle for circle in networkx.strongly_connected_components(arrows) if len(circle) > 1]


def test_patches_import_nothing_of_lensplug():
    for folder, path in modules():
        if folder == "patches":
            assert folders_imported(path) <= {"patches"}, path.relative_to(ROOT)


def test_every_folder_is_installed():
    """`packages` in pyproject.toml is a list by hand: what it lacks works in a clone, and not where it is installed."""
    listed = re.search(r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert listed
    folders = {
        path.parent for path in (ROOT / "lensplug").rglob("*.py") if path.relative_to(ROOT).parts[1] != "patches"
    }
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    names |= {".".join(("lensplug", *path.parent.relative_to(ROOT).parts)) for path in (ROOT / "patches").rglob("*.py")}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == names
