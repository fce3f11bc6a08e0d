"""Renders chat templates in the environment that transformers renders them in.

A request has the template and its variables; the answer is the text.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any

import serving  # type: ignore[import-not-found]  # beside it, where it is run

serving.begin()

import jinja2  # noqa: E402
import jinja2.ext  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402

LONGEST = 10_000_000
"""Characters of a prompt."""


class Generation(jinja2.ext.Extension):
    """The block `{% generation %}`, around what the model says; here it is only written."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        """As a call of a block, which has a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return str(caller())


class Dict:
    """`dict` in a template, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(*args, **kwargs)


def raise_exception(message: str) -> None:
    """A template's way to refuse messages."""
    raise jinja2.TemplateError(message)


def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False):  # type: ignore[no-untyped-def]
    """Without the escapes for HTML that jinja2's own writes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(form: str) -> str:
    """The time."""
    return datetime.now().strftime(form)


ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
ENVIRONMENT.filters["tojson"] = tojson
ENVIRONMENT.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now, "dict": Dict()}
compiled = lru_cache(maxsize=8)(ENVIRONMENT.from_string)


def render(request: dict[str, Any]) -> str:
    """The prompt."""
    parts, length = [], 0
    for part in compiled(request["template"]).generate(**request["variables"]):
        length += len(part)
        if length > LONGEST:
            raise jinja2.TemplateError(f"it writes more than {LONGEST} characters")
        parts.append(part)
    return "".join(parts)


serving.serve(render)
