"""Probes of files: the same bits as in memory, in the memory of one layer."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.collected import collected, noise

pytest.importorskip("sklearn")

from lensplug import LensplugError, LensplugWarning, analysis
from lensplug.analysis import Activations
from lensplug.analysis.probes.collected import Collected

SHARDS = (30, 1, 29)


def shards(folder: Path, whole: Activations) -> list[Path]:
    """The same activations in files of several sizes."""
    paths, start = [], 0
    for number, size in enumerate(SHARDS):
        part = replace(
            whole, vectors=whole.vectors[start : start + size], positions=whole.positions[start : start + size]
        )
        paths.append(part.save(folder / f"chunk-{number}.safetensors"))
        start += size
    assert start == len(whole.vectors)
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hook", ["resid_post", "z"])
def test_files_give_the_same_bits_as_memory(hook, dtype, tmp_path):
    shape = (sum(SHARDS), 3, 2, 6) if hook == "z" else (sum(SHARDS), 3, 6)
    whole = collected(noise(*shape).to(dtype), hook)
    labels = [0, 1, 1] * 20
    expected = analysis.probe(whole, labels, shuffles=1, folds=3)
    paths = shards(tmp_path, whole)
    mixed: list[Any] = [paths[0], collected(whole.vectors[30:31], hook), str(paths[2])]
    for sources in ([*paths], mixed, [str(path) for path in paths]):
        found = analysis.probe(sources, labels, shuffles=1, folds=3)
        for field in fields(found):
            first, second = getattr(expected, field.name), getattr(found, field.name)
            assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second, field.name


PEAK = """
import re
import sys
from pathlib import Path
from lensplug.analysis.probes.collected import Collected

def kilobytes(entry):
    return int(re.search(entry + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

data = Collected.of(sys.argv[1:])
data.layer(0)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
for index in range(len(data.layers)):
    data.layer(index)
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's")
def test_reading_takes_the_memory_of_one_layer(tmp_path):
    layers, examples, width, n_files = 16, 4000, 256, 16
    paths = [
        str(collected(noise(examples // n_files, layers, width, seed=number)).save(tmp_path / f"{number}"))
        for number in range(n_files)
    ]
    shown = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    one_layer, one_file = examples * width * 4, examples // n_files * layers * width * 4
    # Beside the layer, one that the allocator has not given back yet, and the pages of the file that is open.
    limit = 3 * one_layer + one_file
    assert int(shown.stdout) < limit < layers * one_layer / 3


def test_what_is_no_file_of_activations_is_refused(tmp_path):
    whole = collected(noise(60, 2, 4))
    paths = shards(tmp_path, whole)
    probe = analysis.probe(whole, [0, 1] * 30, shuffles=0).save(tmp_path / "probe")
    save_file({"vectors": whole.vectors}, tmp_path / "plain")
    for sources, message in (
        ([paths[0], probe], "holds a Probe, expected Activations"),
        ([paths[0], tmp_path / "plain"], "without a result in its header"),
        ([paths[0], tmp_path / "absent"], "cannot be read as a result"),
        (tmp_path, "cannot be read as a result"),
        ([], "there are no activations"),
        ([paths[0], paths[1], paths[0]], "chunk-0.safetensors' is given twice"),
        ([whole, whole], "a result is given twice"),
        ([paths[0], 3], "activations is the list"),
    ):
        refused: Any = sources
        with pytest.raises(LensplugError, match=message):
            analysis.probe(refused, [0, 1] * 30)


def test_what_was_made_otherwise_is_refused():
    first = collected(noise(20, 2, 4))
    for other, message in (
        (collected(noise(20, 2, 4), "mlp_out"), "the options"),
        (collected(noise(20, 2, 4), model="other"), "the model"),
        (collected(noise(20, 2, 4), weights="other"), "the fingerprint of the weights"),
        (collected(noise(20, 2, 5)), r"activations 1 \(counted from 0\) are \[2, 5\] of the layers"),
        (replace(collected(noise(20, 2, 4)), layers=(1, 0)), r"of the layers \[1, 0\]"),
    ):
        with pytest.raises(LensplugError, match=message):
            analysis.probe([first, other], [0, 1] * 20)
    with pytest.warns(LensplugWarning, match="different versions of torch"):
        analysis.probe(
            [collected(noise(20, 2, 4), versions={"torch": "1"}), collected(noise(20, 2, 4), versions={"torch": "2"})],
            [0, 1] * 20, shuffles=0,
        )  # fmt: skip


def test_a_file_that_changes_or_goes_meanwhile_is_refused(tmp_path):
    paths = shards(tmp_path, collected(noise(60, 2, 4)))
    data = Collected.of(paths)
    collected(noise(31, 2, 4)).save(paths[0])
    with pytest.raises(LensplugError, match="was changed while it was read"):
        data.layer(1)
    paths[0].unlink()
    with pytest.raises(LensplugError, match="can no longer be read"):
        data.layer(1)
