"""The table of families in Markdown, and the page of the documentation around it: a function of the rows alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

from support.families.compared import FamilyRow

VERDICTS = ("exact", "text only", "refused", "not built", "differs", "error")
COLUMNS = (
    "family",
    "result",
    "engine",
    "how",
    "tried with",
    "logits",
    "patterns",
    "decomposition",
    "geometry",
    "reason or note",
)
LONGEST = 220
"""Characters of a reason on the page."""
INTRODUCTION = """# Families: what `lensplug.wrap` takes, and what it refuses

Each line is one multimodal family of transformers {transformers}: a small model of it with random weights, made from
its configuration class, wrapped, and compared with Hugging Face in fp32: on text, and on inputs of its media made by
hand. No weights are downloaded, and a processor is needed only by those that take no words alone (BLIP-2). The random
weights are large: with small ones attention is flat and everything agrees. Look for your model's `config.model_type` in
the first column, and for the version of TransformerLens that you have in the headings. To make the page again, `pip
install timm` (three families need it) and run `python benchmarks/families.py --write docs/families.md` beside each
version.

A family that is not here, or refused here, may still wrap: `lensplug.wrap` tries any decoder of the usual parts, proves
what it made on your very model, and says what failed otherwise (`lens.proof`).

- **result**: *exact*: the logits, the patterns and the sums of parts are Hugging Face's, up to rounding. *text only*:
  so for words; no input of its media could be made by hand. *refused*: `wrap`, or reading an input with that medium,
  says why not, in the last column. *not built*: no small model of it could be made here, so nothing is known. A family
  that differed would be called *differs*, one at which lensplug failed *error*: there must be none.
- **reason or note**: why not, shortened; `wrap` says it whole, and what to use instead.
- **how**: `lens.proof.standing`. *tested family*: the core is in lensplug's table, and CI tests it. *proved*: it is in
  no table; `wrap` tried it and compared it with Hugging Face on load (`lens.proof`).
- **logits**: the largest difference of a logit. **patterns**: of an attention weight from eager attention; empty where
  Hugging Face returns none. Where its eager and SDPA attention compute different things, the note says so, and patterns
  are compared on the other inputs. **decomposition**: how far the sum of the parts (`cache.decompose_resid`) is from
  the last residual stream, at text and media positions, as a fraction of its largest value.
- **geometry**: *yes*: lensplug knows where in its picture, video or sound each position lies. *none*: positions have
  modalities and an order, but no place; `lens.locate` can measure it, unless a resampler made them.

"""


def table(rows: Sequence[FamilyRow], *, head: bool = True) -> str:
    """The lines of some rows."""
    lines = [_line(COLUMNS), _line(["---"] * 5 + ["---:"] * 3 + ["---"] * 2)] if head else []
    return "\n".join([*lines, *(_line(_cells(row)) for row in rows)])


def page(rows: Sequence[FamilyRow], transformers: str = version("transformers")) -> str:
    """The page: a table for each version of TransformerLens, the newest last; families by name.

    Args:
        rows: Of all families, for each version.
        transformers: The version of transformers that the models were made with.
    """
    parts = [INTRODUCTION.format(transformers=transformers)]
    for installed in sorted({row.transformer_lens for row in rows}, key=_numbers):
        made = sorted((row for row in rows if row.transformer_lens == installed), key=lambda row: row.family)
        counts = Counter(row.verdict for row in made)
        told = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])
        parts.append(f"## TransformerLens {installed}\n\nOf {len(made)} families: {told}.\n\n{table(made)}\n\n")
    return "".join(parts).rstrip() + "\n"


def _cells(row: FamilyRow) -> list[str]:
    numbers = [_number(value) for value in (row.logits, row.patterns, row.decomposition)]
    return [
        row.family,
        row.verdict,
        row.engine,
        row.how,
        row.inputs,
        *numbers,
        row.geometry,
        shortened(row.reason).replace("|", "\\|"),
    ]


def shortened(reason: str) -> str:
    """A reason without what it advises, and without the other engine's where the bridge has its own."""
    bridges = reason.rpartition(" And: ")[2]
    told = re.split(r" Instead: | wrap\(\.\.\., | lensplug\.wrap takes ", bridges)[0].strip()
    return told if len(told) <= LONGEST else told[:LONGEST].rpartition(" ")[0] + " ..."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(".") if part.isdigit()]
