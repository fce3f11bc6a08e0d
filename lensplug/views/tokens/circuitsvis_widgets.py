"""CircuitsVis widgets that work offline, escape token texts, and stay small.

CircuitsVis checks whether it is online and then loads its script from a CDN, or copies 1.3 MB of script into every
component, and does not escape token texts. Here a component is only its call; the script is included once per page,
from the installed package, and no token text can close the script element.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import circuitsvis
import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.result import Result, one_row
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import attended, layer_index, read_pattern, texts_of
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.groups import Groups, group_positions
from lensplug.positions.words import running_text
from lensplug.printable import printable
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.heatmap import texts_for
from lensplug.views.overlays.rows import rows_at
from lensplug.views.tokens.text_runs import group_runs

ATTENTION_BYTES = 300_000
"""Maximum size of the numbers of one attention component; text tokens are pooled until it fits."""


@dataclass(frozen=True)
class Widget:
    """A CircuitsVis component: displayed by a notebook, or part of a page (`body`, after `script()` once)."""

    body: str = field(repr=False)
    """HTML of a container and the call that fills it."""
    height: int = 420
    """Height of its frame in a notebook, in pixels."""
    component: str = ""
    """CircuitsVis's name of it."""
    properties: dict[str, Any] = field(default_factory=dict, repr=False)
    """What it shows, as CircuitsVis takes it: a page without scripts draws it from these."""

    def to_html(self) -> str:
        """A page of its own that loads nothing."""
        return f"<!doctype html><meta charset='utf-8'><body><script>{script()}</script>{self.body}</body>"

    def _repr_html_(self) -> str:
        # In an iframe: the component's styles stay inside, and a redraw in VS Code does not shrink it.
        document = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{document}" style="width:100%;height:{self.height}px;border:0"></iframe>'


@cache
def script() -> str:
    """CircuitsVis's own script, as installed."""
    text = (files(circuitsvis) / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    return text.replace("</script>", "<\\/script>")


@checked
def attention_heads(
    cache: ActivationCache,
    inputs: MultimodalInput | None = None,
    *,
    layer: int,
    example: int = 0,
    blocks: int = 3,
    str_tokens: Sequence[Sequence[str]] | None = None,
) -> Widget:
    """The attention heads of one layer between tokens, with image tokens pooled by region.

    Long texts are pooled into short runs of tokens to keep the page small. Pooling sums over the keys of a group and
    averages over its queries, so that rows sum to 1.

    Args:
        cache: An ActivationCache with the layer's `hook_pattern`.
        inputs: The inputs that were run; not needed for a cache of `lensplug.cache_from_attentions`.
        layer: Which layer; negative ones count from the last.
        example: Which example.
        blocks: Number of regions along each side of the image.
        str_tokens: The text of each position, if neither the cache nor `inputs` has it.

    Raises:
        LensplugError: If there is no such layer or example, its pattern is missing, or texts do not fit.
    """
    layer = layer_index(cache, layer)
    patterns = read_pattern(cache, layer, needed_by="attention_rollout")
    check_example(example, len(patterns))
    pattern, length = patterns[example], patterns.shape[-1]
    if inputs is None:
        shape = (len(patterns), length)
        texts = texts_of(cache, str_tokens, shape)[example]
        is_attended = attended(cache, shape, None, torch.device("cpu"))[example].bool()

    def groups_of(run: int) -> Groups:
        if inputs is None:
            return group_runs(texts, run).only(is_attended)
        return group_positions(inputs.modality, inputs.str_tokens, example=example, blocks=blocks, text_run=run)

    run = 1
    while len(pattern) * len((groups := groups_of(run)).names) ** 2 * 7 > ATTENTION_BYTES and run < length:
        run += 1
    pooled = groups.pool(pattern)
    component = circuitsvis.attention.attention_heads(
        attention=_rounded(pooled),
        tokens=[_shown(name) for name in groups.names],
        attention_head_names=[f"L{layer}H{head}" for head in range(len(pooled))],
        mask_upper_tri=False,  # a region is not one position: it attends within itself
    )
    return _widget(component, height=640)


@checked
def colored_tokens(
    values: Result | Float[Tensor, " pos"],
    inputs: MultimodalInput | None = None,
    *,
    example: int = 0,
    blocks: int = 3,
    str_tokens: Sequence[Sequence[str]] | None = None,
) -> Widget:
    """The prompt with each token colored by a value; image regions have the sum over their tokens.

    Args:
        values: One per position: a row of a rollout, of attention, ...; or a result with one such row. If they are not
            shares of attention (such as the lift of a rollout), image regions have the mean instead of the sum.
        inputs: The inputs that were analysed.
        example: Which example.
        blocks: Number of regions along each side of the image.
        str_tokens: The text of each position, without inputs: `cache.str_tokens` of a cache made with `tokens`.

    Raises:
        LensplugError: If there is not one value per position, or a result has several rows.
    """
    means = isinstance(values, Result) and not values.shares
    if isinstance(values, Result):
        values = one_row(values, example, "values").nan_to_num(0)
    if inputs is None:
        row = values.detach().float().cpu()
        texts = texts_for(len(row), inputs=None, str_tokens=str_tokens, example=example)
        groups = Groups(
            torch.arange(len(row)), running_text([text or str(position) for position, text in enumerate(texts)])
        )
    else:
        (row,) = rows_at(values, inputs).values()
        groups = group_positions(inputs.modality, inputs.str_tokens, example=example, blocks=blocks)
    sums = groups.sums(row)
    if means:
        sums = sums / groups.sums(torch.ones_like(row)).clamp(min=1)
    tokens = [_harmless(_shown(name)) for name in groups.names]
    # By default each sign has its own scale, so that small negative values look as strong as large positive ones.
    largest = float(sums[sums.isfinite()].abs().max()) if bool(sums.isfinite().any()) else 0.0
    limits = {"min_value": -largest, "max_value": largest} if bool((sums < 0).any()) else {}
    component = circuitsvis.tokens.colored_tokens(tokens=tokens, values=_rounded(sums), **limits)
    return _widget(component, height=160)


def _widget(component: Any, *, height: int) -> Widget:
    """The call of a CircuitsVis component, extracted from its module script.

    CircuitsVis writes its container as `<div .../>`, which HTML does not close: it would swallow the rest of the page.
    """
    call = re.search(r'render\(\s*"([^"]+)",\s*(\w+),(.*)\)\s*</script>', component.cdn_src, re.DOTALL)
    if call is None:
        raise LensplugError(
            f"CircuitsVis {circuitsvis.__version__} writes components in a form that lensplug does not support."
        )
    identifier, element, properties = call.groups()
    told = json.loads(properties)
    properties = properties.replace("<", "\\u003c")  # inside a JavaScript string: no text can end the script
    run = f'CircuitsVis.render("{identifier}", CircuitsVis.{element}, {properties})'
    return Widget(
        f'<div class="circuitsvis"><div id="{identifier}"></div></div><script>{run}</script>', height, element, told
    )


def _rounded(values: Tensor) -> list[Any]:
    """Rounded to four decimals: visible precision, at a third of the bytes."""
    nested: list[Any] = (values.double() * 1e4).round().div(1e4).tolist()
    return nested


def _shown(token: str) -> str:
    return printable(token.replace("\n", "⏎"))


def _harmless(token: str) -> str:
    """`ColoredTokens` interprets its text as HTML: an invisible word joiner after each < and & prevents that."""
    return re.sub("[<&]", "\\g<0>\u2060", token)
