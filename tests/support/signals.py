"""Commands that are sent a signal at a moment by chance: one line, the exit code, and nothing half or left behind.

    python -m support.signals --signals 200

Each command runs as a process of its own, from the start of the interpreter on, its imports among what is
interrupted; some get a second signal while they clear up, as from an impatient user.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensplug.tiny import CHECKPOINTS

SENT = {signal.SIGINT: (130, "lensplug: interrupted\n"), signal.SIGTERM: (143, "lensplug: terminated\n")}
WATCHED = "command.py"
"""In a traceback of what came after the interpreter's own start."""


@dataclass
class Outcome:
    """What came of some signals."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """One line for each command that ended otherwise than it should."""
    longest_s: float = 0.0
    """From a signal to the end."""


def commands(training: Path) -> dict[str, list[str]]:
    """The commands that write, to `OUT`: on the models that ship, and on what a training left in a folder."""
    picture = training / "picture.png"
    if not picture.exists():
        from lensplug.tiny.scenes import draw_scene

        draw_scene(random.Random(3), size=(96, 96)).image.save(picture)
    model = ["--model", str(CHECKPOINTS / "llava-onevision"), "--image", str(picture), "--device", "cpu"]
    parts = ["--base", "base", "--acoustic", "acoustic", "--checkpoint", "best_model.pth"]
    parts += ["--adapter", "text", "--adapter", "multimodal"]
    parts[1::2] = [str(training / part) for part in parts[1::2]]
    return {
        "demo": ["demo", "--out", "OUT"],
        "report": ["report", *model, "--prompt", "What is the color? Answer single word.", "--out", "OUT/report.html"],
        "convert-audio-llama": ["convert-audio-llama", *parts, "--out", "OUT/converted"],
    }


MODEL = ("config", "generation_config", "processor_config", "tokenizer", "tokenizer_config")
FILES = {
    "demo": {"index.html", "llava-onevision.html", "audio-llama.html"},
    "report": {"report.html"},
    "convert-audio-llama": {"converted/model.safetensors", *(f"converted/{name}.json" for name in MODEL)},
}
"""What each writes."""


def heed_signals() -> None:
    """In a new process: heed what its parent may have been started without (`nohup`, a job in the background)."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(arguments: list[str], out: Path, scratch: Path) -> subprocess.Popen[str]:
    """A command, in a process group of its own."""
    command = [sys.executable, "-m", "lensplug", *(argument.replace("OUT", str(out)) for argument in arguments)]
    environment = {**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=heed_signals, **pipes)


def seconds(arguments: list[str]) -> float:
    """How long a command takes when nobody interrupts it."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with start(arguments, Path(folder), Path(folder)) as process:
            _, stderr = process.communicate()
            assert process.returncode == 0, stderr
        return time.perf_counter() - began


def interrupted(
    count: int, seed: int, training: Path, lasts: Callable[[str, list[str]], float] = lambda name, it: seconds(it)
) -> Outcome:
    """Interrupt so many commands, each kind as often.

    Args:
        count: Of all together.
        seed: Of the moments and signals; a case is told by seed and number.
        training: A folder with what an audio-LLaMA training leaves.
        lasts: Up to which second a command is interrupted; measured where nobody knows.
    """
    known_commands, outcome = commands(training), Outcome()
    lengths = {name: lasts(name, arguments) for name, arguments in known_commands.items()}
    for case in range(count):
        chance = random.Random(f"{seed}-{case}")
        name, number = [*known_commands][case % len(known_commands)], chance.choice([*SENT])
        moment, again = chance.uniform(0, lengths[name]), chance.choice([None, None, chance.uniform(0, 0.05)])
        with tempfile.TemporaryDirectory() as folder:
            out, scratch = Path(folder) / "out", Path(folder) / "scratch"
            out.mkdir()
            scratch.mkdir()
            with_old_file = chance.random() < 0.5 and name == "report"
            if with_old_file:
                (out / "report.html").write_text("old")
            with start(known_commands[name], out, scratch) as process:
                time.sleep(moment)
                process.send_signal(number)
                sent = time.perf_counter()
                if again is not None:
                    time.sleep(again)
                    process.send_signal(number)
                try:
                    _, stderr = process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    stderr = "it went on for a minute"
            took = time.perf_counter() - sent
            end, wrong = _end(process.returncode, stderr, number)
            wrong += _left(name, out, finished=end == "finished", old=with_old_file)
            wrong += [f"{one.name} was left in /tmp" for one in scratch.iterdir()]
        outcome.ends[f"{name}: {end}"] += 1
        if end == "by the signal":
            outcome.longest_s = max(outcome.longest_s, took)
        if wrong:
            outcome.wrong.append(f"seed {seed} case {case}: {name}, {number.name} after {moment:.2f} s: {wrong}")
    return outcome


def _end(code: int, stderr: str, number: signal.Signals) -> tuple[str, list[str]]:
    """How it ended, and what was wrong with that."""
    if code == 0:
        return "finished", []
    if code == -number and not stderr:
        return "before it began", []  # by the system, while the interpreter started
    if number == signal.SIGINT and "KeyboardInterrupt" in stderr and WATCHED not in stderr:
        return "before it began", []  # by the interpreter, which knows no other way there
    expected = SENT[number]
    return "by the signal", [] if (code, stderr) == expected else [f"exit code {code}, said {stderr[-1500:]!r}"]


def _left(name: str, out: Path, *, finished: bool, old: bool) -> list[str]:
    """What lies where the command wrote that should not, or not so."""
    present = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    wrong = [f"{name_of_file} was left" for name_of_file in present - FILES[name]]
    if name == "convert-audio-llama":
        if present and present != FILES[name]:
            wrong.append(f"half a model: {sorted(present)}")
        if present:
            from safetensors import safe_open

            safe_open(out / "converted" / "model.safetensors", "pt")  # refuses what is cut
    for page in (out / name_of_file for name_of_file in present if name_of_file.endswith(".html")):
        text = page.read_text(encoding="utf-8")
        if not (text.rstrip().endswith("</html>") or (old and not finished and text == "old")):
            wrong.append(f"{page.name} is not whole")
    if finished and present != FILES[name]:
        wrong.append(f"finished, and wrote {sorted(present)}")
    return wrong


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from support.trainings import left_by_a_training

    with tempfile.TemporaryDirectory() as folder:
        left_by_a_training(Path(folder))
        outcome = interrupted(options.signals, options.seed, Path(folder))
    print(json.dumps(outcome.ends, indent=2))
    print(*outcome.wrong, sep="\n")
    print(
        f"{len(outcome.wrong)} of {options.signals} wrong; at most {outcome.longest_s:.1f} s from a signal to the end"
    )
    sys.exit(bool(outcome.wrong))


if __name__ == "__main__":
    main()
