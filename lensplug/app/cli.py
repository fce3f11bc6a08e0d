"""The `lensplug` command: `demo`, `report`, `check`, `estimate`, `convert-audio-llama`; `study` (`study_commands`)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensplug.app.steps import steps
from lensplug.app.study_commands import study
from lensplug.app.terminal import say, say_table
from lensplug.errors import LensplugError
from lensplug.files.writable import file_to_write, folder_to_write

if TYPE_CHECKING:  # --help imports neither torch nor TransformerLens
    from lensplug.analysis import HeadSpecialization
    from lensplug.app.report import Report
    from lensplug.lens import MultimodalLens

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Mechanistic interpretability of multimodal language models.",
)

app.add_typer(study, name="study")


def _show_versions(requested: bool) -> bool:
    if requested:
        from importlib.metadata import version

        packages = ("lensplug", "transformer-lens", "transformers", "torch")
        for name in packages:
            say(f"{name} {version(name)}")
        raise typer.Exit
    return requested


@app.callback()
def _everywhere(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_versions, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    pass


Model = Annotated[str, typer.Option(help="A model of the Hugging Face hub, or a folder.")]
ImageFile = Annotated[list[Path] | None, typer.Option(help="An image; repeat for several.")]
VideoFile = Annotated[list[Path] | None, typer.Option(help="A video, sampled at 16 frames; repeat for several.")]
AudioFile = Annotated[
    list[Path] | None, typer.Option(help="A sound (wav, flac, ogg, mp3) at any rate; repeat for several.")
]
Prompt = Annotated[str, typer.Option(help="The question, as plain text.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; cuda if available.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as in the checkpoint.")]


Static = Annotated[bool, typer.Option("--static", help="Pages without scripts, drawn with matplotlib.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("lensplug-demo"),
    seed: Annotated[int, typer.Option(help="Random seed of the image and the voice.")] = 3,
    device: Device = "cpu",
    static: Static = False,
) -> None:
    """Run the tiny LLaVA-OneVision on an image and the tiny audio-LLaMA on a voice; write a page each, and an index."""
    import lensplug
    from lensplug.tiny.scenes import draw_scene
    from lensplug.tiny.voices import make_voice
    from lensplug.views.page.page import Index

    with steps() as step:
        _need_what_draws(static)
        out = folder_to_write(out)
        for name in ("llava-onevision.html", "audio-llama.html", "index.html"):
            file_to_write(out / name)  # fails before anything is computed
        step("loading the tiny LLaVA-OneVision")
        lens = lensplug.tiny.llava_onevision(device=device)
        scene = draw_scene(random.Random(seed), size=(96, 96))
        image_report = _report(
            lens, "What is the color? Answer single word.", out / "llava-onevision.html", step, static,
            images=[scene.image],
        )  # fmt: skip
        step("loading the tiny audio-LLaMA")
        lens = lensplug.tiny.audio_llama(device=device)
        voice = make_voice(random.Random(seed), transcript=True)
        voice_report = _report(
            lens, voice.prompt("feeling"), out / "audio-llama.html", step, static, audio=[voice.audio]
        )
        entries = (
            ("llava-onevision.html", "A picture: tiny LLaVA-OneVision", _card(image_report)),
            ("audio-llama.html", "A voice: tiny audio-LLaMA", _card(voice_report)),
        )
        text = "One page for each of the two trained models that ship with lensplug. Everything works offline."
        index_path = Index("What the models do with what they see and hear", text, entries).save(out / "index.html")
    say("Index: ", str(index_path))


@app.command()
def report(
    model: Model,
    prompt: Prompt,
    image: ImageFile = None,
    video: VideoFile = None,
    audio: AudioFile = None,
    out: Annotated[
        str, typer.Option(help="The page to write; one that is there is replaced.")
    ] = "lensplug-report.html",
    device: Device = None,
    dtype: Dtype = "auto",
    trust_remote_code: RemoteCode = False,
    static: Static = False,
) -> None:
    """Write one self-contained page on how a model answers a prompt with images, videos, sounds, or text only."""
    with steps() as step:
        _need_what_draws(static)
        page = file_to_write(out)  # fails now rather than after minutes
        media = _media(image, video, audio)
        _refuse_input_as_output(page, model, media)
        lens = _load(model, device, dtype, step, trust_remote_code=trust_remote_code)
        _refuse_no_medium(lens, media)
        _report(lens, prompt, page, step, static, **media)


@app.command()
def check(
    model: Model,
    image: ImageFile = None,
    video: VideoFile = None,
    audio: AudioFile = None,
    prompt: Prompt = "What is this?",
    device: Device = None,
    dtype: Dtype = "auto",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Compare the wrapped core with the full model on a prompt with media; exit code 1 if they differ."""
    from lensplug.hf.prompts import as_the_model_reads, has_chat_template

    with steps() as step:
        media = _media(image, video, audio)
        lens = _load(model, device, dtype, step, trust_remote_code=trust_remote_code, check=False)
        _refuse_no_medium(lens, media)
        step("running both")
        template = has_chat_template(lens.processor)
        media_or_none = {"images": None, "videos": None, "audio": None, **media}
        parity = lens.check(
            lens.prepare(as_the_model_reads(lens.processor, prompt, **media_or_none), chat_template=template, **media)
        )
    say(str(parity))
    raise typer.Exit(0 if parity.agrees else 1)


@app.command()
def estimate(
    model: Annotated[str, typer.Argument(help="A model of the Hugging Face hub, or a folder with a config.json.")],
    tokens: Annotated[int, typer.Option(help="Positions of the prompt, those of its media among them.")] = 1000,
    examples: Annotated[int, typer.Option(help="How many prompts run together.")] = 1,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="Of the runs: float32, bfloat16 or float16.")] = "bfloat16",
) -> None:
    """Say what a model's weights and runs would take, from its configuration alone; nothing else is downloaded."""
    import lensplug

    with steps() as step:
        step("building it without memory")
        table = lensplug.estimate(model, tokens=tokens, examples=examples, device=device, dtype=dtype)
    say(str(table))


@app.command()
def convert_audio_llama(
    base: Annotated[str, typer.Option(help="The base LLaMA: a folder, or a model of the hub.")],
    acoustic: Annotated[str, typer.Option(help="The acoustic model: a folder, or a model of the hub.")],
    checkpoint: Annotated[Path, typer.Option(help="The best_model.pth.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    adapter: Annotated[list[Path] | None, typer.Option(help="A LoRA folder; repeat for several, in order.")] = None,
    vectors: Annotated[int, typer.Option(help="Number of vectors per sound.")] = 10,
    audio_token: Annotated[str, typer.Option(help="The placeholder in prompts.")] = "<audio>",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default that of the checkpoint.")
    ] = None,
    allow_other_base: Annotated[bool, typer.Option(help="Accept an adapter that names another base.")] = False,
) -> None:
    """Convert an audio-LLaMA checkpoint (LLaMA, LoRA adapters, best_model.pth) to a folder that lensplug loads."""
    import torch

    from lensplug.audio_llama.convert import convert

    with steps() as step:
        if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise LensplugError(f"dtype is {dtype!r}, expected float32, bfloat16 or float16.")
        folder = convert(
            base,
            acoustic,
            checkpoint,
            out,
            adapters=adapter or [],
            audio_token=audio_token,
            num_audio_vectors=vectors,
            dtype=getattr(torch, dtype) if dtype is not None else None,
            allow_other_base=allow_other_base,
            progress=step,
        )
    say("Written: ", str(folder))


def _load(model: str, device: str | None, dtype: str, step: Any, **options: Any) -> MultimodalLens:
    import lensplug

    step(f"loading {model}")
    return lensplug.load(model, device=device, dtype=dtype, **options)


def _media(image: list[Path] | None, video: list[Path] | None, audio: list[Path] | None) -> dict[str, Any]:
    return {name: files for name, files in (("images", image), ("videos", video), ("audio", audio)) if files}


def _refuse_no_medium(lens: MultimodalLens, media: dict[str, Any]) -> None:
    """Refuse a prompt without media for a multimodal model."""
    if not media and lens.core.placeholder_ids:
        raise LensplugError("there is no image, video or sound: pass --image FILE, --video FILE or --audio FILE.")


def _refuse_input_as_output(page: Path, model: str, media: dict[str, list[Path]]) -> None:
    """Nobody means to replace the image that the report is about, or a file of the model."""
    inputs = [file for files in media.values() for file in files if file.exists()]
    folder = Path(model)
    is_of_model = folder.is_dir() and folder.resolve() in page.resolve().parents
    if page.exists() and (is_of_model or any(page.samefile(file) for file in inputs)):
        raise LensplugError(f"{str(page)!r} is read for the report and would be replaced by it: give another --out.")


def _need_what_draws(static: bool) -> None:
    """Before anything is loaded."""
    from lensplug.views.static.library import need_matplotlib

    if static:
        need_matplotlib()


def _report(lens: MultimodalLens, prompt: str, out: Path, step: Any, static: bool, **media: Any) -> Report:
    from lensplug.app.report import report as make

    result = make(lens, prompt, progress=step, **media)
    if static:
        step("drawing the pictures")
    page_path = result.page.save(out, static=static)
    say(("Question:", "bold"), f" {prompt}")
    say(("Answer:", "bold"), f" {result.answer.text[0]}")
    say(f"It becomes the top token {result.settled}.")
    _say_heads(result.heads, result.medium)
    say("Page: ", str(page_path), f" ({page_path.stat().st_size / 1e6:.1f} MB)")
    say()
    return result


def _say_heads(heads: HeadSpecialization, medium: str) -> None:
    """The heads with the largest mass on a medium, with chance and preference."""
    labels, prefers, class_index = heads.labels, heads.prefers, heads.modalities.index(medium)
    rows = [
        (
            str(layer),
            str(head),
            f"{mass:.3f}",
            f"{float(heads.chance[0, layer, class_index]):.3f}",
            f"{heads.preference[0, layer, head, class_index]:+.1f}",
            labels[layer][head],
            prefers[layer][head],
        )
        for layer, head, mass in heads.top(medium, k=10)
    ]
    say_table(
        f"The ten heads that look at the {medium} most (preference in nats)",
        ("layer", "head", f"mass on {medium}", "chance", "preference", "looks at", "prefers"),
        rows,
    )


def _card(result: Report) -> tuple[tuple[str, str], ...]:
    facts = dict(result.page.facts)
    layer, head, mass = result.heads.top(result.medium, k=1)[0]
    chance = float(result.heads.chance[0, layer, result.heads.modalities.index(result.medium)])
    looks = f"layer {layer}, head {head} ({mass:.0%} of its attention, chance {chance:.0%})"
    settled = ("Settled", result.settled)
    return (
        ("Prompt", facts["Prompt"]),
        ("Answer", facts["Answer"]),
        settled,
        (f"Looks at {result.medium} most", looks),
    )
