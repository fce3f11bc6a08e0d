"""A few hundred of the cases of `make fuzz`, other ones each day."""

from __future__ import annotations

import pytest

from fuzz.case import PROPERTIES, Case, Differs
from fuzz.run import run_task, seed_of_today, shared_out

CASES = 300
MODELS = 4


@pytest.mark.parametrize(("name", "cases"), shared_out(CASES).items(), ids=list(PROPERTIES))
def test_holds(name, cases):
    row = run_task(name, range(cases), seed_of_today(), MODELS)
    assert not row.failures, "\n".join([f"{row.failures} of {row.cases} cases:", *row.messages])


def test_a_case_can_fail_and_says_where():
    case = Case("0", "0", 1)
    case.close([1.0, float("nan")], [1.0, float("nan")], 1e-9, "equal")
    case.close([1.0 + 1e-10], [1.0], 1e-9, "near")
    assert 0 < case.share <= 0.11
    for found in ([1.0, 2.0], [float("nan")], [1.1]):
        with pytest.raises(Differs, match="value"):
            case.close(found, [1.0], 1e-9, "value")
    with pytest.raises(Differs, match="number"):
        case.same([1, 2], [1, 3], "number")


def test_a_case_follows_from_its_seed():
    one, again, other = Case("7/a/1", "7", 1), Case("7/a/1", "7", 1), Case("7/a/2", "7", 1)
    drawn = [(case.integer(0, 10**9), case.normal(2).tolist()) for case in (one, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
