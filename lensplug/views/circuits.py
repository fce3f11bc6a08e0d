"""CircuitsVis for tokens, made offline, safe and small.

CircuitsVis asks a web server whether it is online and then loads its script from a CDN, copies 1.3 MB
of script into every component, and does not escape the text of tokens. Here a component is kept as its
few lines; the script is put in once for each page, from the installed package, and no token's text can
end it.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import circuitsvis
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.reading import read_pattern
from lensplug.errors import LensplugError
from lensplug.groups import group_positions
from lensplug.inputs import MultimodalInput
from lensplug.views.rows import rows_at

ATTENTION_BYTES = 300_000
"""The most that the numbers of one attention component may weigh; text tokens are pooled until they fit."""


@dataclass(frozen=True)
class Widget:
    """A CircuitsVis component: shown by a notebook, or put on a page (`body`, after `script()` once)."""

    body: str = field(repr=False)
    """A container and the few lines that fill it."""
    height: int = 420
    """Of its frame in a notebook, in pixels."""

    def to_html(self) -> str:
        """A page of its own that loads nothing."""
        return f"<!doctype html><meta charset='utf-8'><body><script>{script()}</script>{self.body}</body>"

    def _repr_html_(self) -> str:
        # A frame of its own: the component's styles stay inside, and a redraw in VS Code does not shrink it.
        document = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{document}" style="width:100%;height:{self.height}px;border:0"></iframe>'


@cache
def script() -> str:
    """CircuitsVis's own script, as installed."""
    text = (files(circuitsvis) / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    return text.replace("</script>", "<\\/script>")


def attention_heads(cache: Any, inputs: MultimodalInput, *, layer: int, example: int = 0, blocks: int = 3) -> Widget:
    """The heads of one layer between tokens, image tokens pooled by region of the picture.

    Groups of keys have the sum of their attention, groups of queries the mean: rows sum to 1.

    Args:
        cache: An ActivationCache with the layer's `hook_pattern`.
        inputs: The inputs that were run.
        layer: Which layer; negative ones count from the last.
        example: Which example.
        blocks: Regions along each side of the picture.

    Raises:
        LensplugError: If there is no such layer or its pattern is missing.
    """
    layers = cache.model.cfg.n_layers
    if not -layers <= layer < layers:
        raise LensplugError(f"layer is {layer}, the model has layers 0 to {layers - 1}.")
    pattern = read_pattern(cache, layer % layers, needed_by="attention_rollout")[example]
    run = 1
    while True:
        groups = group_positions(inputs.modality, inputs.str_tokens, example=example, blocks=blocks, text_run=run)
        if len(pattern) * len(groups.names) ** 2 * 7 <= ATTENTION_BYTES or run >= inputs.tokens.shape[1]:
            break
        run += 1
    pooled = groups.pool(pattern)
    component = circuitsvis.attention.attention_heads(
        attention=_rounded(pooled),
        tokens=[_shown(name) for name in groups.names],
        attention_head_names=[f"L{layer % layers}H{head}" for head in range(len(pooled))],
        mask_upper_tri=False,  # a region of the picture is not one position: its rows see within it
    )
    return _widget(component, height=640)


def colored_tokens(
    values: Float[Tensor, " pos"], inputs: MultimodalInput, *, example: int = 0, blocks: int = 3
) -> Widget:
    """The prompt with each token coloured by a value; image regions have the sum of theirs.

    Args:
        values: One for each position: a row of a rollout, of attention, ...
        inputs: The inputs that were analysed.
        example: Which example.
        blocks: Regions along each side of the picture.

    Raises:
        LensplugError: If the values are not one for each position.
    """
    (row,) = rows_at(values, inputs).values()
    groups = group_positions(inputs.modality, inputs.str_tokens, example=example, blocks=blocks)
    kept = groups.of_position >= 0
    sums = row.new_zeros(len(groups.names)).index_add_(0, groups.of_position[kept], row[kept])
    tokens = [_harmless(_shown(name)) for name in groups.names]
    component = circuitsvis.tokens.colored_tokens(tokens=tokens, values=_rounded(sums))
    return _widget(component, height=160)


def _widget(component: Any, *, height: int) -> Widget:
    """CircuitsVis's call, taken out of its module script.

    Its own container is `<div .../>`, which HTML leaves open, so that the component would swallow the rest
    of the page.
    """
    call = re.search(r'render\(\s*"([^"]+)",\s*(\w+),(.*)\)\s*</script>', component.cdn_src, re.DOTALL)
    if call is None:
        raise LensplugError(
            f"CircuitsVis {circuitsvis.__version__} writes its components in a form that is not known here."
        )
    identifier, element, properties = call.groups()
    properties = properties.replace("<", "\\u003c")  # inside a JavaScript string: no text can end the script
    run = f'CircuitsVis.render("{identifier}", CircuitsVis.{element}, {properties})'
    return Widget(f'<div class="circuitsvis"><div id="{identifier}"></div></div><script>{run}</script>', height)


def _rounded(values: Tensor) -> list[Any]:
    """Four decimals: what a reader can see, at a third of the bytes."""
    nested: list[Any] = (values.double() * 1e4).round().div(1e4).tolist()
    return nested


def _shown(token: str) -> str:
    return token.replace("\n", "⏎")


def _harmless(token: str) -> str:
    """`ColoredTokens` takes its text for HTML: a word joiner behind each < and & keeps it text, and is not seen."""
    return re.sub("[<&]", "\\g<0>\u2060", token)
