"""Render a model's chat template safely: in a separate process with limits of time and memory.

Templates come with the model. jinja2's sandbox keeps them from files and from Python; it does not keep them from loops
in loops, from a text that doubles sixty times, or from lists of lists that print as a billion numbers.
"""

from __future__ import annotations

from typing import Any

import jinja2
import markupsafe
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from lensplug.child import Child, ChildError
from lensplug.errors import LensplugError

TEMPLATES = Child("render_templates.py", jinja2.__file__, markupsafe.__file__)
KNOWN = (ProcessorMixin.apply_chat_template, PreTrainedTokenizerBase.apply_chat_template)
"""What is done here in another process; processors with a way of their own (Voxtral's has no template) go theirs."""


def rendered(processor: Any, messages: list[dict[str, Any]]) -> str:
    """The prompt of a conversation, with the beginning of the model's turn.

    Args:
        processor: A processor, or the tokenizer of a model of words alone.
        messages: As Hugging Face has them.

    Raises:
        LensplugError: If the template refuses the messages, or takes too long or too much memory.
    """
    name = type(processor).__name__
    template = _template(processor)
    if template is None or getattr(type(processor), "apply_chat_template", None) not in KNOWN:
        return _by_its_own_way(processor, messages)
    tokenizer = getattr(processor, "tokenizer", processor)
    variables = {
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        **{token: _plain(text) for token, text in tokenizer.special_tokens_map.items()},
    }
    try:
        reply = TEMPLATES.ask({"template": template, "variables": variables})
    except ChildError as error:
        raise LensplugError(
            f"the chat template of {name} was stopped: {error}. A template comes with the model"
            " (chat_template.jinja): write the prompt in the model's own form, and give chat_template=False."
        ) from error
    if "error" in reply:
        raise _refused(name, reply["error"] if reply["kind"].startswith("Template") else _words(reply))
    return str(reply["answer"])


def _by_its_own_way(processor: Any, messages: list[dict[str, Any]]) -> str:
    try:
        return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except (jinja2.TemplateError, ValueError, TypeError, RecursionError) as error:
        raise _refused(type(processor).__name__, error) from error


def _refused(name: str, error: Any) -> LensplugError:
    """As for roles that do not take turns, or a system's that the model has none for."""
    return LensplugError(f"the chat template of {name} refuses the messages: {error}.")


def _words(reply: dict[str, str]) -> str:
    return f"{reply['error']} ({reply['kind']})"


def _template(processor: Any) -> str | None:
    """The template that is used if none is named."""
    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _plain(value: Any) -> Any:
    """Special tokens as texts; lists stay lists."""
    return [str(item) for item in value] if isinstance(value, list | tuple) else str(value)
