"""docs/families.md is what the kept rows say, and they are of every family; nothing is run here."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from support.families.compared import FamilyRow
from support.families.listed import families
from support.families.page import VERDICTS, page, shortened

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
ROWS = [FamilyRow(**row) for row in json.loads((ROOT / "benchmarks" / "families.json").read_text(encoding="utf-8"))]
MADE_WITH = str(re.findall(r"of transformers ([\d.]+):", PAGE)[0])


def test_the_page_says_what_the_rows_say():
    assert page(ROWS, MADE_WITH) == PAGE


def test_every_row_has_a_known_verdict_and_those_that_do_not_wrap_a_reason():
    assert {row.verdict for row in ROWS} <= set(VERDICTS)
    assert [row.family for row in ROWS if row.verdict in ("refused", "not built") and not row.reason] == []
    assert [row.family for row in ROWS if row.verdict == "exact" and not row.engine] == []


@pytest.mark.skipif(version("transformers") != MADE_WITH, reason="the page was made with another transformers")
def test_every_family_of_transformers_is_there_once_for_each_version():
    for installed in {row.transformer_lens for row in ROWS}:
        assert sorted(row.family for row in ROWS if row.transformer_lens == installed) == list(families())


def test_a_short_reason_is_the_beginning_of_the_whole():
    long = "the core is x, which cannot be a HookedTransformer. And: its decoder has no y. Instead: use z."
    assert shortened(long) == "its decoder has no y."
    assert len(shortened("word " * 100)) <= 225 and shortened("word " * 100).endswith("word ...")
