# ruff: noqa: E501
"""Chat templates rendered in a process of their own against transformers' rendering; what happens to that process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support.models import llava_onevision
from transformers import PreTrainedTokenizerFast

import lensplug.child
from lensplug import LensplugError
from lensplug.hf import chat_templates
from lensplug.tiny import CHECKPOINTS

TURNS = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief, <b>& 'kind'</b>."}]},
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is\n 「this」? \ud83d {{ 7 * 7 }}"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": [{"type": "text", "text": ""}]},
]
TEMPLATES = {
    "the tiny LLaVA's": (CHECKPOINTS / "llava-onevision" / "chat_template.jinja").read_text(),
    "the tiny audio-LLaMA's": (CHECKPOINTS / "audio-llama" / "chat_template.jinja").read_text(),
    "whitespace": "{%- for m in messages %}\n  {% if loop.first %}\n\t{{- m.role }}\n  {% endif %}\n  {{ m.role }}\n{% endfor %}\n",
    "loop controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m['role'] }}{% if loop.index "
    "> 2 %}{% break %}{% endif %}{% endfor %}",
    "macros and namespaces": "{% macro say(m, n=2) %}[{{ m.role }}:{{ n }}]{% endmacro %}{% set ns = namespace(count=0) %}"
    "{% for m in messages %}{% set ns.count = ns.count + m.content | length %}{{ say(m, n=ns.count) }}{% endfor %}",
    "JSON": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true, "
    "ensure_ascii=true) }}",
    "generation": "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
    "filters": "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ m.content | map(attribute='type') | join(', ') "
    "| upper | trim }}{% endfor %}{{ 7 // 2 }}{{ 'a' * 3 }}{{ messages[::-1][0].role[-2:] }}{{ dict(a=1) }}",
    "what is defined": "{{ tools is defined }}{{ tools is none }}{{ documents is none }}{{ nothing is defined }}"
    "{{ add_generation_prompt }}{{ nothing }}{{ messages[0].nothing is defined }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}",
    "texts": "{{ messages[1].content[1].text.split('?')[0].strip().replace('i', 'I') }}{{ '%s-%05.1f' | format('a', 2.25) }}"
    "{{ '{:>9}'.format('a') }}{{ 'a' ~ 1 ~ none }}",
    "the year": "{{ strftime_now('%Y') }}",
}  # fmt: skip


@pytest.fixture(scope="module")
def processor():
    return llava_onevision()[1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_as_transformers_renders_it(processor, monkeypatch, name):
    monkeypatch.setattr(processor, "chat_template", TEMPLATES[name])
    expected = processor.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False)
    assert expected and chat_templates.rendered(processor, TURNS) == expected


def test_of_a_tokenizer_and_of_several_templates(processor, monkeypatch):
    tokenizer: PreTrainedTokenizerFast = processor.tokenizer
    words = [{"role": turn["role"], "content": "words"} for turn in TURNS]
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    for one in (template, {"default": template, "tool_use": "other"}):
        monkeypatch.setattr(tokenizer, "chat_template", one)
        expected = tokenizer.apply_chat_template(words, add_generation_prompt=True, tokenize=False)
        assert chat_templates.rendered(tokenizer, words) == expected
    monkeypatch.setattr(tokenizer, "chat_template", {"tool_use": "other"})
    with pytest.raises(LensplugError, match="refuses the messages: .*no default"):
        chat_templates.rendered(tokenizer, words)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles take turns') }}", "refuses the messages: roles take turns"),
        ("{% for %}", "refuses the messages: "),
        ("{{ messages.__class__.__mro__ }}{{ ''.join(messages.__class__) }}", "SecurityError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{% set _ = messages.append(1) %}", "SecurityError"),
        ("{{ 'a' * 3000000000 }}", "memory"),
    ],
)
def test_what_a_template_may_not(processor, monkeypatch, template, says):
    monkeypatch.setattr(processor, "chat_template", template)
    with pytest.raises(LensplugError, match=says):
        chat_templates.rendered(processor, TURNS)
    monkeypatch.setattr(processor, "chat_template", "{{ messages[0].role }}")
    assert chat_templates.rendered(processor, TURNS) == "system"


def test_a_template_without_end_is_stopped_and_the_next_one_rendered(processor, monkeypatch):
    monkeypatch.setattr(lensplug.child, "SECONDS", 0.5)
    monkeypatch.setattr(
        processor, "chat_template", "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    )
    start = time.monotonic()
    with pytest.raises(LensplugError, match=r"was stopped: it took more than 0 seconds.*chat_template=False"):
        chat_templates.rendered(processor, TURNS)
    assert time.monotonic() - start < 5
    monkeypatch.setattr(lensplug.child, "SECONDS", 5.0)
    monkeypatch.setattr(processor, "chat_template", "{{ messages[0].role }}")
    assert chat_templates.rendered(processor, TURNS) == "system"


def test_the_process_is_started_anew_when_it_was_ended_and_after_a_fork(processor, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", "{{ messages[0].role }}")
    assert chat_templates.rendered(processor, TURNS) == "system"

    def pid() -> int:
        assert chat_templates.TEMPLATES.process is not None
        return chat_templates.TEMPLATES.process.pid

    first = chat_templates.TEMPLATES.process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert chat_templates.rendered(processor, TURNS) == "system"
    second = pid()
    assert second != first.pid
    child = os.fork()
    if not child:
        well = chat_templates.rendered(processor, TURNS) == "system" and pid() != second
        chat_templates.TEMPLATES.close()
        os._exit(0 if well else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert chat_templates.rendered(processor, TURNS) == "system" and pid() == second


def test_the_process_knows_nothing_of_this_one(processor):
    """Its imports are jinja2 and the standard library, and its program imports nothing of lensplug."""
    folder = Path(lensplug.child.__file__).parent
    programs = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(programs) == 3
    assert not any(
        "lensplug" in line for path in programs for line in path.read_text().splitlines() if "import" in line
    )
