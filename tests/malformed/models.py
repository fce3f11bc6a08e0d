"""Every broken or hostile folder opened, each in a process of its own with 6 GB and a few seconds; a table.

    PYTHONPATH=tests python -m malformed.models               # all; --only WORD for those with a word in their name

A folder is well refused where a `LensplugError` names what is wrong, soon, and nothing of it was run.
"""

from __future__ import annotations

import argparse
import builtins
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malformed.model_folders import CANARY, CASES

import lensplug.child

LONGEST, LARGEST = 20, 6 << 30
"""Seconds and bytes of address space beyond what is there, for one folder."""
QUESTION = "What is the color? Answer single word."


@dataclass(frozen=True)
class Outcome:
    """What came of a folder."""

    kind: str
    """"refused", "raw", "taken", "hung", "died", or "ran" (its code)."""
    says: str
    seconds: float
    memory: int
    """Largest resident set beyond the parent's, in MB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="those with this in their name")
    parser.add_argument("--share", type=float, default=1.0, help="of the folders, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", type=float, default=5.0, help="seconds for a template or a pattern")
    parser.add_argument("--quiet", action="store_true", help="faults alone")
    options = parser.parse_args()
    names = [name for name in CASES if options.only in name]
    names = random.Random(options.seed).sample(names, max(1, round(options.share * len(names))))
    faults, counts = 0, dict.fromkeys(("refused", "taken", "raw", "hung", "died", "ran"), 0)
    with tempfile.TemporaryDirectory() as root:
        good = _good_folders(Path(root))
        _warm(good)
        lensplug.child.SECONDS = options.stop
        for name in names:
            case = CASES[name]
            outcome = _tried(name, case, good, Path(root))
            counts[outcome.kind] += 1
            told = bool(re.search(case.names, outcome.says, re.S)) if case.names else True
            quick = outcome.seconds < 10
            allowed = ("refused",) if case.names else ("refused", "taken")
            well = outcome.kind in allowed and told and quick
            faults += not well
            if not well or not options.quiet:
                mark = "" if well else "  <-- " + ("not named" if outcome.kind == "refused" else outcome.kind)
                print(f"{outcome.kind:8}{outcome.seconds:5.1f} s {outcome.memory:5} MB  {name}: {outcome.says}{mark}")
    print(f"{len(names)} folders (seed {options.seed}): {counts}, {faults} faults")
    sys.exit(bool(faults))


def _good_folders(root: Path) -> dict[str, Path]:
    from support.trainings import left_by_a_training

    from lensplug.tiny import CHECKPOINTS

    (root / "training").mkdir()
    left_by_a_training(root / "training")
    return {
        "load": CHECKPOINTS / "llava-onevision",
        "ask": CHECKPOINTS / "llava-onevision",
        "convert": root / "training",
    }


def _warm(good: dict[str, Path]) -> None:
    """Everything imported, and every good folder taken: children start from here."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for action in ("ask", "convert"):
        with tempfile.TemporaryDirectory() as folder:
            _act(action, shutil.copytree(good[action], Path(folder) / "model"))


def _act(action: str, folder: Path) -> Any:
    from lensplug.audio_llama.convert import convert

    if action == "convert":
        adapters = [folder / "text", folder / "multimodal"]
        return convert(
            folder / "base", folder / "acoustic", folder / "best_model.pth", folder / "out", adapters=adapters
        )
    lens = lensplug.load(folder, device="cpu")
    if action == "ask":
        from lensplug.tiny.scenes import draw_scene

        inputs = lens.prepare(QUESTION, images=[draw_scene(random.Random(0), size=(48, 48)).image])
        lens.run_with_cache(inputs)
    return lens


def _tried(name: str, case: Any, good: dict[str, Path], root: Path) -> Outcome:
    place = Path(tempfile.mkdtemp(dir=root))
    place.chmod(0o777)
    folder = shutil.copytree(good[case.action], place / "model")
    case.spoil(folder)
    for path in (folder, folder / "x"):
        if path.is_dir():
            path.chmod(0o777)
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            _in_child(writer, case.action, folder, nobody="may not be read" in name)
        except BaseException as error:  # noqa: BLE001
            os.write(writer, f"0\nraw\nbefore it was tried: {error!r}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    outcome = _awaited(child, reader, start)
    if (place / CANARY).exists():
        outcome = Outcome("ran", outcome.says, outcome.seconds, outcome.memory)
    shutil.rmtree(place)
    return outcome


def _in_child(writer: int, action: str, folder: Path, *, nobody: bool) -> None:
    """Says into the pipe how it went."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(devnull, stream)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + LARGEST, size + LARGEST))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if nobody and os.geteuid() == 0:
        folder.parents[1].chmod(0o755)  # the temporary folder of them all
        os.setgid(65534)
        os.setuid(65534)
    os.chdir(folder.parent)
    builtins.input = _asked  # type: ignore[assignment]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        _act(action, folder)
        said = "taken\n"
    except lensplug.LensplugError as error:
        said = f"refused\n{error}"
    except BaseException as error:  # noqa: BLE001
        said = f"raw\n{type(error).__name__}: {error}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    os.write(writer, f"{grown}\n{said}".encode(errors="replace")[:60_000])


def _asked(*question: str) -> str:
    (Path.cwd() / CANARY).touch()
    raise AssertionError("asked on the terminal")


def _awaited(child: int, reader: int, start: float) -> Outcome:
    import select

    ready, _, _ = select.select([reader], [], [], LONGEST)
    seconds = time.monotonic() - start
    if not ready:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        return Outcome("hung", f"more than {LONGEST} s", seconds, 0)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if not text:
        return Outcome("died", f"status {status}", seconds, 0)
    grown, kind, says = text.split("\n", 2)
    return Outcome(kind, says.replace("\n", " "), seconds, int(grown))


if __name__ == "__main__":
    main()
