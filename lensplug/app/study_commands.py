"""The commands `lensplug study ...`: a study without Python, for scripts and array jobs.

lensplug study init flowers-color --model llava-hf/llava-onevision-qwen2-0.5b-ov-hf --dtype bfloat16
lensplug study add flowers-color flowers/ --prompt "What is the color? Answer single word." --group species
lensplug study measure flowers-color head_specialization --option query=-1
lensplug study run flowers-color --devices all
lensplug study status flowers-color
lensplug study report flowers-color --out flowers-color.html
lensplug study export flowers-color head_specialization --out heads.parquet
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensplug.app.steps import errors_in_a_sentence, steps
from lensplug.app.terminal import say, say_table
from lensplug.errors import LensplugError
from lensplug.files.atomic_write import write_bytes
from lensplug.files.writable import file_to_write

if TYPE_CHECKING:
    from lensplug.study import Study

study = typer.Typer(no_args_is_help=True, help="Measure one model on many examples, in a folder that can be resumed.")
Folder = Annotated[str, typer.Argument(help="The study's folder, or an address such as s3://bucket/study.")]
Option = Annotated[list[str] | None, typer.Option("--option", help="name=value; @column for a column of the examples.")]
EXPORTS = (".parquet", ".csv", ".safetensors")


@study.command()
def init(
    folder: Folder,
    model: Annotated[str, typer.Option(help="A model of the hub, a folder, or module:function that returns a lens.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    engine: Annotated[str | None, typer.Option(help="hooked_transformer or bridge.")] = None,
    revision: Annotated[str | None, typer.Option(help="A commit, branch or tag of the hub.")] = None,
    chunk: Annotated[int | None, typer.Option(help="Examples in a file of results.")] = None,
) -> None:
    """Begin a study of a model."""
    with steps():
        from lensplug.study import Study

        options = {"dtype": dtype, "engine": engine, "revision": revision}
        made = Study(
            folder, model=model, chunk=chunk, **{name: one for name, one in options.items() if one is not None}
        )
    say(str(made))


@study.command()
def add(
    folder: Folder,
    source: Annotated[Path, typer.Argument(help="A folder of media, or a manifest: CSV, JSONL or Parquet.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What is asked; repeat for several of a folder.")] = None,
    group: Annotated[str, typer.Option(help="What the column of a folder's subfolders is called.")] = "group",
) -> None:
    """Add examples; what is there already is not added again."""
    with steps():
        opened = _open(folder)
        if source.is_dir():
            if not prompt:
                raise LensplugError("there is no prompt: give --prompt 'What is the color?'.")
            added = opened.add_folder(source, prompt=prompt, group=group)
        else:
            added = opened.add(source, prompt=_one(prompt))
    say(f"{added} added, {len(opened.examples)} in all.")


@study.command()
def measure(
    folder: Folder,
    analysis: Annotated[str, typer.Argument(help="head_specialization, logit_lens, neuron_activity, ...")],
    option: Option = None,
    name: Annotated[str | None, typer.Option(help="What it is called, where an analysis is measured twice.")] = None,
) -> None:
    """Ask for an analysis of every example."""
    with steps():
        opened = _open(folder)
        opened.measure(analysis, name=name, **_options(opened, option))
    say(f"{name or analysis} will be measured by lensplug study run.")


@study.command()
def run(
    folder: Folder,
    devices: Annotated[str | None, typer.Option(help="all, or several with commas: one process each.")] = None,
    device: Annotated[str | None, typer.Option(help="One device, for this process.")] = None,
    batch: Annotated[int, typer.Option(help="Prompts that run together.")] = 8,
    new_versions: Annotated[bool, typer.Option("--new-versions", help="Measure again after an upgrade.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the model's folder is on this machine.")] = None,
) -> None:
    """Measure what is not measured yet; may be started many times at once, and killed."""
    with errors_in_a_sentence():
        chosen = device or (devices if devices in (None, "all") else devices.split(","))
        opened = _open(folder)
        opened.run(devices=chosen, batch=batch, new_versions=new_versions, model=model)
        failed = len(opened.failures())
    say("Done." if not failed else f"Done; {failed} examples failed: lensplug study status {folder}")


@study.command()
def forget(folder: Folder, measurement: Annotated[str, typer.Argument(help="The name of a measurement.")]) -> None:
    """Take a measurement back; results that are there stay."""
    with steps():
        _open(folder).forget(measurement)
    say(f"{measurement} will not be measured.")


@study.command()
def status(folder: Folder) -> None:
    """Show what is done, what failed and why."""
    with steps():
        opened = _open(folder)
        progress, failed = opened.progress(), opened.failures()
        title = str(opened)
    say_table(title, list(progress.columns), [[str(cell) for cell in row] for row in progress.to_numpy()])
    if len(failed):
        kinds = failed.groupby(["error_type", "error"]).size().sort_values(ascending=False)
        rows = [(str(count), kind, error) for (kind, error), count in kinds.head(10).items()]
        say_table(f"{len(failed)} failures", ("examples", "type", "error"), rows)


@study.command()
def retry(
    folder: Folder,
    device: Annotated[str | None, typer.Option(help="Where to load the model.")] = None,
    batch: Annotated[int, typer.Option(help="Prompts that run together.")] = 8,
) -> None:
    """Try the examples that failed again."""
    with errors_in_a_sentence():
        opened = _open(folder)
        mended = opened.retry(device=device, batch=batch)
        failed = len(opened.failures())
    say(f"{mended} work now, {failed} still fail.")


@study.command()
def report(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The page to write; one that is there is replaced.")],
    by: Annotated[str | None, typer.Option(help="The column of the examples whose values are groups.")] = None,
    compare: Annotated[str | None, typer.Option(help="Another study's folder, to show the differences.")] = None,
    static: Annotated[bool, typer.Option("--static", help="A page without scripts, drawn with matplotlib.")] = False,
) -> None:
    """Write one self-contained page on what is done so far."""
    with steps() as step:
        from lensplug.app.study_report import write_study_report

        opened = _open(folder)
        other = None if compare is None else _open(compare)
        written = write_study_report(opened, out, by=by, other=other, static=static, progress=step)
    say("Page: ", str(written), f" ({written.stat().st_size / 1e6:.1f} MB)")


@study.command()
def export(
    folder: Folder,
    measurement: Annotated[str, typer.Argument(help="What to export: the name of a measurement.")],
    out: Annotated[Path, typer.Option(help="A file: .parquet or .csv (a table), .safetensors (for lensplug.read).")],
) -> None:
    """Write the results of a measurement into one file: a row for each example and thing that is measured."""
    with steps() as step:
        if out.suffix not in EXPORTS:
            raise LensplugError(f"{str(out)!r} ends in {out.suffix!r}: expected {', '.join(EXPORTS)}.")
        target = file_to_write(out)
        step("reading results")
        found = _open(folder).result(measurement)
        if out.suffix == ".safetensors":
            found.result.save(target)
        else:
            table = found.to_dataframe()
            write_bytes(target, table.to_parquet() if out.suffix == ".parquet" else table.to_csv(index=False).encode())
    say("Written: ", str(target))


def _open(folder: str) -> Study:
    from lensplug.study import Study

    return Study(folder)


def _one(prompts: list[str] | None) -> str | None:
    if prompts and len(prompts) > 1:
        raise LensplugError("a manifest takes one --prompt, for all of its rows; several are for a folder.")
    return prompts[0] if prompts else None


def _options(opened: Study, given: list[str] | None) -> dict[str, Any]:
    """Options as Python has them: JSON where it is JSON, else a text."""
    options: dict[str, Any] = {}
    for each in given or ():
        name, equals, text = each.partition("=")
        if not equals:
            raise LensplugError(f"--option {each!r} is not of the form name=value.")
        if text.startswith("@"):
            options[name] = opened.column(text[1:])
            continue
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options
