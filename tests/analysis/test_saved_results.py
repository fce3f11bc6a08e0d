"""What is read is what was saved: every result of every analysis, and a refusal for every other file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.results import every_result
from torch import Tensor

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.analysis.result import Result
from lensplug.analysis.saved_fields import SMALL, decoded, encoded
from lensplug.analysis.saved_results import outline


@pytest.fixture(scope="module")
def results():
    return every_result()


def refuse_difference(first: Any, second: Any, where: str) -> None:
    """Equal in every field, to the bit and the type."""
    assert type(first) is type(second), where
    if is_dataclass(first):
        for one in fields(first):
            refuse_difference(getattr(first, one.name), getattr(second, one.name), f"{where}.{one.name}")
    elif isinstance(first, Tensor):
        assert first.dtype == second.dtype and torch.equal(first.nan_to_num(-7), second.nan_to_num(-7)), where
    elif isinstance(first, pd.DataFrame):
        pd.testing.assert_frame_equal(first, second)
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            refuse_difference(*pair, f"{where}[{index}]")
    else:
        assert first == second or first != first, where


def test_there_is_one_of_each_kind(results):
    kinds = {getattr(analysis, name) for name in dir(analysis)}
    kinds = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Result)}
    assert {type(result) for result in results.values()} == kinds


def test_every_result_is_read_as_it_was_saved(results, tmp_path):
    for name, result in results.items():
        path = result.save(tmp_path / f"{name}.safetensors")
        found = lensplug.read(path)
        refuse_difference(result, found, name)
        pd.testing.assert_frame_equal(result.to_dataframe(), found.to_dataframe())


def test_small_tensors_are_written_out_in_a_header():
    nan = torch.nan
    values = [torch.linspace(0, 1, 11), torch.tensor([[1, 2], [3, 2**62]]), torch.tensor([True, False]),
              torch.tensor([0.1, nan, -torch.inf], dtype=torch.float64), torch.tensor([0.3]).bfloat16(),
              torch.zeros(2, 0, 3), torch.tensor(5)]  # fmt: skip
    for value in values:
        header = json.dumps(encoded(value), allow_nan=False)
        refuse_difference(value, decoded(json.loads(header), {}), header)
    with pytest.raises(TypeError, match="more than a header holds"):
        encoded(torch.zeros(SMALL + 1))


def test_an_outline_has_all_but_the_numbers_of_large_tensors(results, tmp_path):
    for name, result in results.items():
        found = outline(result.save(tmp_path / "result"))
        assert type(found) is type(result)
        for field in fields(result):  # type: ignore[arg-type]
            first, second = getattr(result, field.name), getattr(found, field.name)
            if isinstance(first, Tensor) and first.ndim > 1:
                assert second.is_meta and (second.shape, second.dtype) == (first.shape, first.dtype), (name, field.name)
            elif not is_dataclass(first) and not isinstance(first, tuple):  # these may hold large ones
                refuse_difference(first, second, f"{name}.{field.name}")


@pytest.mark.parametrize("name", ["head_specialization", "logit_lens", "compare"])
def test_what_is_read_is_drawn_as_before(name, results, tmp_path):
    found = lensplug.read(results[name].save(tmp_path / "result"))
    assert views.draw(found).to_json() == views.draw(results[name]).to_json()


def test_half_precision_infinities_and_odd_texts(results, tmp_path):
    lens_table = results["logit_lens"]
    odd = replace(
        lens_table,
        entropy=lens_table.entropy.to(torch.bfloat16),
        kl_to_last=torch.full_like(lens_table.kl_to_last, float("inf")),
        target_texts=[["\udc80\x1b[2J", "</script>"]] * 2,
    )
    refuse_difference(odd, lensplug.read(odd.save(tmp_path / "odd")), "")
    wide = replace(results["attention_flow"], residual=float("nan"))
    found: Any = lensplug.read(wide.save(tmp_path / "nan"))
    assert found.residual != 0


def test_a_part_of_a_tensor_is_saved_alone(results, tmp_path):
    heads = results["head_specialization"]
    large = torch.zeros(1000, *heads.mass.shape, dtype=heads.mass.dtype)
    large[0] = heads.mass
    path = replace(heads, mass=large[0]).save(tmp_path / "heads")
    assert path.stat().st_size < 40_000
    found: Any = lensplug.read(path)
    assert torch.equal(found.mass, heads.mass)


def test_other_programs_read_the_tensors(results, tmp_path):
    path = results["head_specialization"].save(tmp_path / "heads.safetensors")
    assert torch.equal(load_file(path)["mass"], results["head_specialization"].mass)


def test_a_file_is_read_without_transformer_lens_or_transformers(results, tmp_path):
    results["head_specialization"].save(tmp_path / "heads")
    code = (
        "import sys, lensplug; lensplug.read(sys.argv[1]).to_dataframe();"
        " print([name for name in ('transformer_lens', 'transformers', 'plotly') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "heads")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def changed(path: Path, change: Any) -> Path:
    """The file with another header."""
    with safe_open(str(path), "pt") as file:
        header = json.loads(file.metadata()["lensplug"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    save_file(tensors, path, {"lensplug": json.dumps(change(header) or header)})
    return path


def without(header: dict[str, Any], *names: str) -> dict[str, Any]:
    """The header without the entry that the names lead to."""
    inner = header
    for name in names[:-1]:
        inner = inner[name]
    del inner[names[-1]]
    return header


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(format=2, versions={"lensplug": "9.1"}), "format 2, written by lensplug 9.1;"),
        (lambda header: header.update(kind="Dreams"), "the kind 'Dreams'"),
        (lambda header: header.update(kind="Example"), "the kind 'Example'"),
        (lambda header: header.update(kind="compare"), "the kind 'compare'"),
        (lambda header: without(header, "fields", "mass"), r"whose fields are others \(mass\)"),
        (lambda header: header["fields"].update(color=1), r"whose fields are others \(color\)"),
        (lambda header: header["fields"].update(mass=1), "its field 'mass' is not what"),
        (lambda header: header["fields"].update(mass={"tensor": "query"}), "its field 'mass' is not what"),
        (lambda header: header["fields"].update(mass={"tensor": "absent"}), "its header is broken"),
        (lambda header: header["fields"].update(provenance={"part": "Path", "fields": {}}), "its header is broken"),
        (lambda header: header["fields"].update(modalities={"tuple": 3}), "its header is broken"),
        (lambda header: without(header, "fields"), "its header is broken"),
        (lambda header: ["a list"], "without a result in its header"),
    ],
)
def test_what_this_version_cannot_read_is_refused(results, tmp_path, change, message):
    path = changed(results["head_specialization"].save(tmp_path / "heads"), change)
    with pytest.raises(LensplugError, match=message):
        lensplug.read(path)


def test_what_is_no_result_is_refused(results, tmp_path):
    path = results["head_specialization"].save(tmp_path / "heads")
    content = path.read_bytes()
    for name, other in {"cut": content[:-100], "empty": b"", "text": b"mass", "bits": b"\xff" * 64}.items():
        (tmp_path / name).write_bytes(other)
    save_file({"mass": torch.zeros(2)}, tmp_path / "plain")
    for name in ("cut", "empty", "text", "bits", "plain", "absent", ""):
        with pytest.raises(LensplugError, match="cannot be read as a result: .*Give a file that result.save"):
            lensplug.read(tmp_path / name)


def test_a_place_that_cannot_be_written_is_refused(results, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(LensplugError, match="is a folder, and a file is to be written"):
        results["head_specialization"].save(tmp_path / "folder")


def test_tables_carry_their_provenance(results, tmp_path):
    for name, result in results.items():
        attrs = result.to_dataframe().attrs
        made = attrs["provenance"] if name != "compare" else attrs["provenances"][0]
        assert made["analysis"] and made["versions"]["lensplug"] == lensplug.__version__
    table = results["logit_lens"].to_dataframe()
    table.to_parquet(tmp_path / "table.parquet")
    assert pd.read_parquet(tmp_path / "table.parquet").attrs == table.attrs
