"""The page that says which families have places names all of them, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from lensplug.families import FAMILIES, NO_PLACE

PAGE = Path(__file__).parents[2] / "docs" / "places.md"


def rows() -> dict[str, list[str]]:
    """`model_type` -> what the table says of one image, several images, a video, a sound."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| .*\(`", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {re.findall(r"\(`(.+?)`\)", first)[-1]: others for first, *others in cells if "model_type" not in first}


def test_the_page_names_every_family_and_each_once():
    assert sorted(rows()) == sorted({*FAMILIES, *NO_PLACE})
    assert PAGE.read_text(encoding="utf-8").count("\n| ") == len(rows()) + 2


def test_each_cell_says_exact_or_none_and_why_or_that_it_is_not_taken():
    for family, cells in rows().items():
        assert len(cells) == 4, family
        assert all(re.match(r"exact|none|-$", cell) for cell in cells), family
        reasons = [cell for cell in cells if cell.startswith("none")]
        assert bool(reasons) == (family in NO_PLACE), family
        assert not reasons or any(":" in reason for reason in reasons)
