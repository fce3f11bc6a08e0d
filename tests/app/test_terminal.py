"""What the command says on a real (pseudo) terminal, in a pipe and in a file: the text that came, never obeyed."""

from __future__ import annotations

import ast
import fcntl
import logging
import os
import struct
import sys
import termios
import threading
import tty
import warnings
from pathlib import Path

import pytest
from support.models import text_model
from typer.testing import CliRunner

from lensplug import LensplugWarning
from lensplug.app import terminal
from lensplug.app.cli import app
from lensplug.tiny.words import word_tokenizer

PACKAGE = Path(__file__).parents[2] / "lensplug"
ALLOWED = {PACKAGE / "app" / "terminal.py", PACKAGE / "tiny" / "train.py"}
"""Of the second nobody is the user but who makes the models that ship."""
HOSTILE = {
    "[/x]": "[/x]",
    "a[bold].html": "a[bold].html",
    "[link=http://a]b[/link]": "[link=http://a]b[/link]",
    ":smile:": ":smile:",
    "\x1b[2J": r"\x1b[2J",
    "\x1b]8;;http://a\x1b\\b": r"\x1b]8;;http://a\x1b\b",
    "\x9b2J\x07": r"\x9b2J\x07",
    "a\rb\x08c\x00": r"a\rb\x08c\x00",
    "\u202egpj.exe": r"\u202egpj.exe",
    "a\u200bb": r"a\u200bb",
    "\udc80": r"\udc80",
    "a\\[b]": "a\\[b]",
    "http://a.b 12 'x' None <Tensor>": "http://a.b 12 'x' None <Tensor>",
}
"""What comes -> what is to be seen."""


@pytest.fixture
def screen(monkeypatch):
    """Runs what prints on a pseudo-terminal of some columns; the bytes that arrive there."""

    def run(call, *, columns=200, encoding="utf-8", **environment):
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), **environment}.items():
            monkeypatch.setenv(name, value)
        outer, inner = os.openpty()
        tty.setraw(inner)
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        arrived: list[bytes] = []
        reader = threading.Thread(target=_read_all, args=(outer, arrived))
        reader.start()
        with os.fdopen(inner, "w", encoding=encoding) as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            monkeypatch.setattr(sys, "stderr", stream)
            terminal._made.cache_clear()
            call()
            monkeypatch.undo()
        reader.join()
        os.close(outer)
        terminal._made.cache_clear()
        shown = b"".join(arrived)
        return shown.decode(encoding)

    return run


def _read_all(outer, arrived):
    """Until nobody writes any more."""
    try:
        while part := os.read(outer, 65536):
            arrived.append(part)
    except OSError:
        pass


@pytest.mark.parametrize(("text", "seen"), HOSTILE.items())
@pytest.mark.parametrize("error", [False, True])
def test_a_line_is_what_came(screen, text, seen, error):
    assert screen(lambda: terminal.say("Page: ", text, error=error)) == f"Page: {seen}\n"


@pytest.mark.parametrize(("text", "seen"), HOSTILE.items())
def test_a_styled_text_is_what_came(screen, text, seen):
    assert screen(lambda: terminal.say((text, "bold"))) == f"\x1b[1m{seen}\x1b[0m\n"
    assert screen(lambda: terminal.say((text, "bold")), NO_COLOR="1") == f"\x1b[1m{seen}\x1b[0m\n"


@pytest.mark.parametrize(("text", "seen"), HOSTILE.items())
@pytest.mark.parametrize("columns", [200, 20])
def test_cells_names_and_titles_of_tables_are_what_came(screen, text, seen, columns):
    shown = screen(lambda: terminal.say_table(text, [text, "b"], [[text, "1"]]), columns=columns)
    assert shown.count(seen) == 3
    assert all(
        one.isprintable() or one == "\n"
        for one in shown.replace("\x1b[3m", "").replace("\x1b[0m", "").replace("\x1b[1m", "")
    )


@pytest.mark.parametrize(("text", "seen"), HOSTILE.items())
def test_a_step_is_what_came(screen, text, seen):
    def call():
        with terminal.working("starting") as step:
            step(f"loading {text}")

    shown = screen(call)
    assert f"loading {seen} ..." in shown and "\x1b[2J" not in shown and "\x1b]8" not in shown


def test_warnings_and_log_lines_are_printable_meanwhile_and_as_before_afterwards(capsys):
    logger, handler = logging.getLogger("somebody"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with pytest.warns() as _, terminal.working("starting"):
            assert warnings.formatwarning("a\x1b[2Jb", UserWarning, "f.py", 1).count(r"a\x1b[2Jb") == 1
            sentence = warnings.formatwarning("c\x1b[2Jd", LensplugWarning, "typer/main.py", 1, "the line")
            assert sentence == "lensplug: c\\x1b[2Jd\n"
            logger.warning("model %s", "\x1b[2J")
            warnings.warn("one", stacklevel=1)
    finally:
        logger.removeHandler(handler)
    assert r"model \x1b[2J" in capsys.readouterr().err
    assert "\x1b" in warnings.formatwarning("\x1b", UserWarning, "f.py", 1)
    assert logging.getLogRecordFactory()("n", 1, "p", 1, "\x1b", (), None).getMessage() == "\x1b"


def test_long_paths_are_neither_cut_nor_broken(screen):
    path = "/folder with words/" + "x" * 300 + "/a page.html"
    for columns in (20, 80):
        assert screen(lambda: terminal.say("Page: ", path), columns=columns) == f"Page: {path}\n"


def test_lines_of_an_answer_do_not_look_like_ours(screen):
    assert screen(lambda: terminal.say("Answer: ", "one\nPage: /etc")) == "Answer: one\n  Page: /etc\n"


def test_a_terminal_without_utf_8_has_escapes_for_the_rest(screen):
    def call():
        terminal.say("Antwort: ", "größer 日")
        terminal.say_table("é", ["é"], [["日"]])
        with terminal.working("é"):
            pass

    shown = screen(call, encoding="ascii")
    assert r"gr\xf6\xdfer \u65e5" in shown and r"\xe9" in shown and "+--" in shown


@pytest.mark.parametrize("columns", [20, 80])
def test_a_table_in_a_pipe_is_whole(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal._made.cache_clear()
    terminal.say_table("title " * 20, ["name " * 5] * 4, [["cell " * 5] * 4])
    terminal._made.cache_clear()
    shown = capsys.readouterr().out
    assert "title " * 19 in shown and all(
        line.count("cell cell cell cell cell") in (0, 4) for line in shown.splitlines()
    )


def test_a_report_on_a_hostile_model_says_what_it_wrote(tmp_path):
    """Tokens that are markup and control sequences, in a folder and for a page of such names."""
    tokens = [text for text in HOSTILE if "\udc80" not in text and " " not in text]
    tokenizer = word_tokenizer(tokens, special=["<pad>"], eos="<pad>", pad="<pad>")
    tokenizer.chat_template = None
    folder = tmp_path / "m[/x]\x1b[2J"
    text_model("Llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    out = tmp_path / "a[bold]\x1b[31m.html"
    options = ["--model", str(folder), "--prompt", "[/x] \x1b[2J :smile:", "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, ["report", *options])
    assert result.exit_code == 0, result.output
    assert out.exists() and "\x1b" not in result.output and "\r" not in result.output
    assert r"a[bold]\x1b[31m.html (" in result.output and r"Question: [/x] \x1b[2J :smile:" in result.output


@pytest.mark.parametrize("name", ["m[/x]", "m\x1b[2J", "m\u202e", "m:smile:", "m\udc80"])
def test_a_model_that_is_not_there_is_named_as_it_was_given(tmp_path, name):
    for arguments in (
        ["check", "--model", str(tmp_path / name)],
        ["report", "--prompt", "a", "--model", name, "--image", name],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
        assert result.stderr.startswith("lensplug: ") and not set(result.output) & set("\x1b\u202e\udc80")


@pytest.mark.parametrize("bad", ["--[/x]", "--\x1b[2J", "\x1b[2J", "[/x]", "--seed=\x1b[2J[/x]", "--device"])
def test_usage_errors_are_one_sentence(bad):
    result = CliRunner().invoke(app, ["demo", bad])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), repr(result.exception)
    assert "\x1b" not in result.output and "Error" in result.output


def test_nothing_else_prints():
    """No module but terminal.py prints, or knows rich, so that no text can be read as markup."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            prints = isinstance(called, ast.Name) and called.id == "print"
            echoes = isinstance(called, ast.Attribute) and called.attr in {"echo", "secho"}
            knows = [
                getattr(node, "module", "") or "",
                *[one.name for one in getattr(node, "names", []) if hasattr(one, "name")],
            ]
            rich = isinstance(node, ast.Import | ast.ImportFrom) and any(n.split(".")[0] == "rich" for n in knows)
            assert path in ALLOWED or not (prints or echoes or rich), f"{path}:{getattr(node, 'lineno', 0)}"
