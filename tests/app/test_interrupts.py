"""Signals end a command in one line at any moment; `make stress` sends two hundred, the tests some each day."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from datetime import datetime, timezone
from typing import Any

import pytest
from support.signals import heed_signals, interrupted
from support.trainings import left_by_a_training

SEED = int(os.environ.get("LENSPLUG_SEED", datetime.now(timezone.utc).strftime("%Y%m%d")))


def main(command: str) -> list[str]:
    """A process whose command is this code, through the same beginning and end as `lensplug`."""
    stands_in = f"""
        import os, signal, sys, types
        import lensplug.app.command as command

        def begin():
            print("begun", flush=True)

        def app():
            import time
{textwrap.indent(textwrap.dedent(command), " " * 12)}

        sys.modules["lensplug.app.cli"] = types.SimpleNamespace(app=app)
        command.main()
    """
    return [sys.executable, "-c", textwrap.dedent(stands_in)]


def ended(command: str, *signals: int) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command that gets signals when it has begun."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(main(command), **pipes, preexec_fn=heed_signals) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        for number in signals:
            process.send_signal(number)
        said, error = process.communicate(timeout=30)
    return process.returncode, said, error


WAIT = "begin(); time.sleep(20)"


@pytest.mark.parametrize(
    ("number", "word"), [("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up")]
)
def test_each_signal_has_its_word_and_code(number, word):
    number = getattr(signal, number)
    assert ended(WAIT, number) == (128 + number, "", f"lensplug: {word}\n")


KEPT = {
    "an import takes it for a failure": """
        try:
            begin(); time.sleep(20)
        except BaseException as error:
            raise ImportError("no torch") from error
    """,
    "it is dropped": """
        try:
            begin(); time.sleep(20)
        except:
            pass
        time.sleep(20)
        print("went on")
    """,
    "dropped where nobody can take it": """
        class Dropped:
            def __del__(self):
                begin(); time.sleep(20)
        Dropped()
        time.sleep(20)
        print("went on")
    """,
    "a sentence is said of it": """
        try:
            begin(); time.sleep(20)
        except BaseException as error:
            print("lensplug: could not be loaded", file=sys.stderr)
            raise SystemExit(2)
    """,
    "a thread is at work": """
        import threading
        threading.Thread(target=time.sleep, args=(20,)).start()
        begin(); time.sleep(20)
    """,
}


@pytest.mark.parametrize("what", KEPT)
def test_whatever_becomes_of_the_exception(what):
    assert ended(KEPT[what], signal.SIGTERM) == (143, "", "lensplug: terminated\n")


def test_clearing_up_is_not_interrupted():
    """By a second Ctrl-C, nor by the look whether the first is still on its way; what was printed is not lost."""
    clearing = """
        import atexit
        atexit.register(lambda: print("at exit"))
        try:
            begin(); time.sleep(20)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
            print("cleared up")
    """
    assert ended(clearing, signal.SIGINT) == (130, "cleared up\nat exit\n", "lensplug: interrupted\n")


def test_the_third_signal_ends_the_clearing_up():
    clearing = """
        try:
            begin(); time.sleep(20)
        finally:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)
    """
    assert ended(clearing, signal.SIGINT) == (130, "", "lensplug: interrupted\n")


def test_what_was_to_be_ignored_is(tmp_path):
    """As nohup asks for."""
    command = [
        "sh",
        "-c",
        'trap "" HUP; exec "$@"',
        "sh",
        *main("begin(); os.kill(os.getpid(), signal.SIGHUP); print('done')"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\ndone\n", "")


def test_a_process_that_parts_from_it_is_not_the_command():
    forked = """
        begin()
        here, there = os.pipe()
        child = os.fork()
        if not child:
            os.write(there, b"!")  # it has parted: a signal in the very moment of the fork would be lost
            time.sleep(20)
            os._exit(1)
        os.read(here, 1)
        os.kill(child, signal.SIGTERM)
        print(os.waitpid(child, 0)[1])
    """
    assert ended(forked) == (0, f"{signal.SIGTERM}\n", "")


@pytest.mark.parametrize(("ends", "code"), [("pass", 0), ("sys.exit(3)", 3), ("sys.exit('why')", 1), ("1 / 0", 1)])
def test_a_command_that_ends_by_itself(ends, code):
    result = ended(f"begin(); {ends}")
    assert result[:2] == (code, "")
    assert ("ZeroDivisionError" in result[2]) == (ends == "1 / 0") and ("why" in result[2]) == ("why" in ends)


def test_a_reader_that_has_seen_enough():
    """`lensplug report ... | head`: no traceback, neither from the print nor from Python's end."""
    for prints in ("print('x' * 100)", "[print('x' * 1000) for _ in range(100)]"):
        with subprocess.Popen(main(f"sys.stdin.readline(); {prints}"), stdin=-1, stdout=-1, stderr=-1) as process:
            assert process.stdin and process.stdout and process.stderr
            process.stdout.close()
            process.stdin.write(b"\n")
            process.stdin.close()
            said = process.stderr.read()
        assert (process.returncode, said) == (1, b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_does_not_become_the_first_file_that_is_opened(closed, tmp_path):
    """What a command prints, and what a library in C prints on its own, would be written into that file."""
    prints = "print('out'); print('error', file=sys.stderr); [os.write(number, b'!') for number in (1, 2)]"
    page = tmp_path / "page.html"
    command = main(f"file = open({str(page)!r}, 'w'); file.write('page'); file.flush(); {prints}")
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], capture_output=True, timeout=30)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert page.read_text() == "page"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_an_output_that_is_full():
    """Neither a print nor the flush at the end is a traceback."""
    for prints in ("print('x' * 100)", "[print('x' * 1000) for _ in range(100)]"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(main(prints), stdout=full, stderr=subprocess.PIPE, text=True, timeout=30)
        assert done.returncode == 1
        assert done.stderr == "lensplug: what it prints cannot be written: No space left on device.\n"


def test_importing_lensplug_changes_no_signal():
    code = """if True:
        import signal
        from lensplug.app import cli, command
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM).name)
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=heed_signals)
    assert done.stdout == "True SIG_DFL\n"


def test_signals_at_moments_by_chance(tmp_path):
    """In imports mostly, which is where commands are for their first seconds."""
    left_by_a_training(tmp_path)
    outcome = interrupted(5, SEED, tmp_path, lasts=lambda name, arguments: 4.0)
    assert not outcome.wrong, "\n".join(outcome.wrong)
