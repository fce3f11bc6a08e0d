# ruff: noqa: E501
"""Model folders that are broken, or made to do harm: each is a good folder, and what spoils it.

`CASES` has, for each, what is done with the folder, what spoils it, and what the refusal must name. Some would fill
memory, never end, run code or ask the network, if nobody held them back.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 3963750880\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Entry not found</body></html>\n"
CANARY = "code_was_run"
"""The file that code of a folder writes beside the folder, should it ever be run."""
WEIGHTS = "model.safetensors"

Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One folder."""

    action: str
    """"load", "ask" (load, and prepare a question), "convert"."""
    spoil: Spoil
    names: str
    """A regular expression that the refusal must match: the file, or what is wrong with it; "" where the folder may as
    well be taken, since nothing of it does harm."""


def written(name: str, content: bytes | str) -> Spoil:
    """A file, replaced."""

    def spoil(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return spoil


def changed(name: str, *keys: str, to: Any) -> Spoil:
    """A JSON file, one value of it replaced."""

    def spoil(folder: Path) -> None:
        whole = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        place = whole
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = to
        (folder / name).write_text(json.dumps(whole))

    return spoil


def config(*keys: str, to: Any) -> Spoil:
    return changed("config.json", *keys, to=to)


def cut(name: str, keep: float | int) -> Spoil:
    """A file of which the end is missing."""

    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])

    return spoil


def header(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """The header of the weights, changed; their bytes stay."""

    def spoil(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        made = change(json.loads(data[8 : 8 + length]))
        text = made if isinstance(made, bytes) else json.dumps(made).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def _first(tensors: Mapping[str, Any]) -> str:
    return next(name for name in tensors if name != "__metadata__")


def _with(tensors: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**tensors, _first(tensors): {**tensors[_first(tensors)], **changes}}


def _overlapping(tensors: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in tensors if name != "__metadata__"]
    return {**tensors, names[1]: tensors[names[0]]}


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Spoil:
    def spoil(folder: Path) -> None:
        made = {name: value.contiguous() for name, value in change(load_file(folder / WEIGHTS)).items()}
        save_file(made, folder / WEIGHTS, {"format": "pt"})

    return spoil


def sharded(change: Callable[[Path, dict[str, Any]], object]) -> Spoil:
    """The weights as two files and their index, changed."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(tensors)
        places: dict[str, str] = {}
        for number, part in enumerate((names[::2], names[1::2]), 1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
            places |= dict.fromkeys(part, file)
        change(folder, places)
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        if not (folder / f"{WEIGHTS}.index.json").exists():
            (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return spoil


def _renamed_to(file: str) -> Callable[[Path, dict[str, str]], None]:
    def change(folder: Path, places: dict[str, str]) -> None:
        last = places[sorted(places)[1]]
        target = folder / file
        if not target.exists():
            os.replace(folder / last, target)
        places.update({name: file for name, place in places.items() if place == last})

    return change


class _Runs:
    """What a pickle may hold: a call of anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def as_bin(make: Callable[[Path, dict[str, torch.Tensor]], bytes]) -> Spoil:
    """The weights as pytorch_model.bin."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(make(folder, tensors))

    return spoil


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def deflated(data: bytes, grow: int = 0) -> bytes:
    """The same archive, its members compressed, the largest of them made longer by zeros."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        largest = max(old.infolist(), key=lambda info: info.file_size).filename
        for info in old.infolist():
            with new.open(info.filename, "w", force_zip64=True) as member:
                member.write(old.read(info.filename))
                for _ in range(grow >> 20 if info.filename == largest else 0):
                    member.write(bytes(1 << 20))
    return out.getvalue()


def template(text: str) -> Spoil:
    return written("chat_template.jinja", text)


def fifo(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


def linked(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def code(*files: str, **maps: Any) -> Spoil:
    """Code in the folder, and configurations that name it."""

    def spoil(folder: Path) -> None:
        text = f"from pathlib import Path\nPath({str(folder.parent / CANARY)!r}).touch()\nclass Made:\n    pass\n"
        for file in ("made.py", "custom_generate/generate.py"):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
        for file in files:
            changed(file, "auto_map", to=maps)(folder)

    return spoil


def several(*spoils: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil


NESTED = b"[" * 200_000
GRAPHEMES = "{%- for i in range(90000) -%}{%- for j in range(90000) -%}{%- set x = j -%}{%- endfor -%}{%- endfor -%}"
LAUGHS = (
    "{%- set ns = namespace(a=[1]) -%}{%- for i in range(60) -%}{%- set ns.a = [ns.a, ns.a] -%}{%- endfor -%}{{ ns.a }}"
)
MACROS = "{%- macro f(n) -%}{%- if n -%}{{ f(n - 1) }}{{ f(n - 1) }}{%- endif -%}{%- endmacro -%}{{ f(60) }}"
ADAPTER, TOP = "multimodal/adapter_config.json", "best_model.pth"


def top(change: Callable[[Path, dict[str, torch.Tensor]], bytes]) -> Spoil:
    """The checkpoint of a training, changed."""

    def spoil(folder: Path) -> None:
        state = torch.load(folder / TOP, weights_only=True)
        (folder / TOP).write_bytes(change(folder, state))

    return spoil


def expanded(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """One of the tensors told to have a billion rows, all of them the same few numbers."""
    return {**tensors, name: tensors[name][:1].expand(10**9, *tensors[name].shape[1:])}


CASES: dict[str, Case] = {
    # Weights: what a broken download leaves.
    "weights cut": Case("load", cut(WEIGHTS, 0.6), r"model.safetensors.*\d bytes.*missing.*again"),
    "weights cut in the header": Case("load", cut(WEIGHTS, 900), "model.safetensors.*header"),
    "weights of seven bytes": Case("load", cut(WEIGHTS, 7), "model.safetensors"),
    "weights empty": Case("load", written(WEIGHTS, b""), "model.safetensors.*empty"),
    "weights a pointer": Case("load", written(WEIGHTS, POINTER), "model.safetensors.*git lfs pull"),
    "weights a web page": Case("load", written(WEIGHTS, PAGE), "model.safetensors.*HTML"),
    "weights with bytes behind": Case(
        "load", lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"x" * 99), "model.safetensors.*99"
    ),
    "weights a folder": Case("load", several(lambda f: (f / WEIGHTS).unlink(), lambda f: (f / WEIGHTS).mkdir()),
                             "model.safetensors"),
    "shard missing": Case("load", sharded(lambda f, p: os.unlink(f / "model-00002-of-00002.safetensors")),
                          "model-00002-of-00002.safetensors.*not there"),
    "shard cut": Case("load", several(sharded(lambda f, p: None), cut("model-00001-of-00002.safetensors", 0.5)),
                      "model-00001-of-00002.safetensors.*missing"),
    "shard lacks a weight": Case("load", sharded(lambda f, p: p.update({"extra": "model-00001-of-00002.safetensors"})),
                                 ""),
    "index names a file outside": Case("load", sharded(_renamed_to("../outside.safetensors")), "outside.safetensors"),
    "index names an absolute path": Case("load", sharded(_renamed_to("/dev/zero")), "/dev/zero"),
    "index is a list": Case("load", sharded(lambda f, p: (f / f"{WEIGHTS}.index.json").write_text("[]")), "index.json"),
    "index without a map": Case("load", sharded(lambda f, p: (f / f"{WEIGHTS}.index.json").write_text("{}")),
                                "index.json"),
    "index of numbers": Case("load", sharded(lambda f, p: p.update(dict.fromkeys(p, 3))), "index.json"),
    # Weights: headers that were made to do harm.
    "header of 2**63 bytes": Case("load", written(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"), "model.safetensors.*header"),
    "header of 200 MB": Case(
        "load", written(WEIGHTS, struct.pack("<Q", 200 << 20) + b"{" + b" " * (200 << 20)), "model.safetensors.*header"
    ),
    "header nested": Case("load", header(lambda h: b'{"a":' * 100_000), "model.safetensors.*header"),
    "header a list": Case("load", header(lambda h: [1, 2]), "model.safetensors.*header"),
    "header of other keys": Case("load", header(lambda h: {"a": {"b": 1}}), "model.safetensors.*header"),
    "shape that overflows": Case("load", header(lambda h: _with(h, shape=[2**40, 2**40])), "model.safetensors"),
    "shape below zero": Case("load", header(lambda h: _with(h, shape=[-1, 4])), "model.safetensors"),
    "shape of another size": Case("load", header(lambda h: _with(h, shape=[3, 3])), "model.safetensors"),
    "offsets outside": Case("load", header(lambda h: _with(h, data_offsets=[2**50, 2**50 + 4])), "model.safetensors"),
    "offsets that overlap": Case("load", header(_overlapping), "model.safetensors"),
    "dtype unknown": Case("load", header(lambda h: _with(h, dtype="Q7")), "model.safetensors.*Q7"),
    "dtype F8": Case("load", weights(lambda w: {n: v.to(torch.float8_e4m3fn) for n, v in w.items()}), "F8_E4M3"),
    "dtype of integers": Case("load", weights(lambda w: {n: v.long() for n, v in w.items()}), "I64"),
    "weights of another shape": Case("load", weights(lambda w: {n: v[:-1] for n, v in w.items()}), "model"),
    "weights of none of the names": Case("load", weights(lambda w: {f"x.{n}": v for n, v in w.items()}), "lack"),
    # Pickles.
    "bin with code": Case("load", as_bin(lambda f, w: saved({**w, "x": _Runs(f.parent / CANARY)})), "pytorch_model.bin"),
    "bin a plain pickle": Case("load", as_bin(lambda f, w: pickle.dumps(_Runs(f.parent / CANARY))), "pytorch_model.bin"),
    "bin cut": Case("load", as_bin(lambda f, w: saved(w)[:500_000]), "pytorch_model.bin"),
    "bin empty": Case("load", as_bin(lambda f, w: b""), "pytorch_model.bin.*empty"),
    "bin a list": Case("load", as_bin(lambda f, w: saved([1])), "pytorch_model.bin"),
    "bin a bomb": Case("load", as_bin(lambda f, w: deflated(saved(w), 3 << 30)), "pytorch_model.bin"),
    "bin of a billion rows": Case("load", as_bin(lambda f, w: saved(expanded(w, _first(w)))), "model"),
    # config.json.
    "config a web page": Case("load", written("config.json", PAGE), "config.json.*HTML"),
    "config empty": Case("load", written("config.json", b""), "config.json.*empty"),
    "config with a byte order mark": Case(
        "load", lambda f: (f / "config.json").write_bytes(b"\xef\xbb\xbf" + (f / "config.json").read_bytes()),
        "config.json.*byte order mark",
    ),
    "config in Latin": Case("load", written("config.json", b'{"model_type": "\xe9"}'), "config.json"),
    "config a list": Case("load", written("config.json", "[1]"), "config.json"),
    "config a number": Case("load", written("config.json", "3"), "config.json"),
    "config nested": Case("load", written("config.json", NESTED), "config.json.*deep"),
    "config of 300 MB": Case("load", written("config.json", b" " * (300 << 20) + b"{}"), "config.json.*MB"),
    "config without a model type": Case("load", written("config.json", "{}"), "model_type|config.json"),
    "model type unknown": Case("load", config("model_type", to="perceptron"), "perceptron"),
    "model type a list": Case("load", config("model_type", to=["llava"]), "config.json"),
    "model type of a text model": Case("load", config("model_type", to="t5"), "model"),
    "layers 10**9": Case("load", config("text_config", "num_hidden_layers", to=10**9), "num_hidden_layers"),
    "layers 90000": Case("load", several(config("text_config", "num_hidden_layers", to=90_000),
                                         config("text_config", "layer_types", to=None)), "config.json|layers"),
    "encoder layers 10**9": Case("load", config("vision_config", "num_hidden_layers", to=10**9), "num_hidden_layers"),
    "layers below zero": Case("load", config("text_config", "num_hidden_layers", to=-3), "num_hidden_layers"),
    "hidden size 10**12": Case("load", config("text_config", "hidden_size", to=10**12), "hidden_size"),
    "hidden size a million": Case("load", config("text_config", "hidden_size", to=960_000), "config.json"),
    "hidden size zero": Case("load", config("text_config", "hidden_size", to=0), "config.json.*ZeroDiv"),
    "hidden size a text": Case("load", config("text_config", "hidden_size", to="many"), "hidden_size|config.json"),
    "hidden size NaN": Case("load", config("text_config", "hidden_size", to=float("nan")), "NaN|hidden_size"),
    "hidden size a fraction": Case("load", config("text_config", "hidden_size", to=95.5), "hidden_size|config.json"),
    "hidden size another": Case("load", config("text_config", "hidden_size", to=48), "config.json|size"),
    "vocabulary 10**11": Case("load", config("text_config", "vocab_size", to=10**11), "vocab_size"),
    "vocabulary 10**8": Case("load", config("text_config", "vocab_size", to=10**8), "config.json"),
    "positions 10**15": Case("load", config("vision_config", "image_size", to=10**15), "image_size"),
    "patches of nothing": Case("load", config("vision_config", "patch_size", to=0), "config.json.*ZeroDiv"),
    "heads zero": Case("load", config("text_config", "num_attention_heads", to=0), "config.json.*ZeroDiv"),
    "heads that do not divide": Case("load", config("text_config", "num_attention_heads", to=7), "config.json|head|size"),
    "text config a text": Case("load", config("text_config", to="qwen"), "config.json"),
    "text config nothing": Case("load", config("text_config", to=None), "config.json|model|size"),
    "dtype a text": Case("load", config("dtype", to="float99"), "dtype|config.json"),
    "rope of no kind": Case("load", config("text_config", "rope_parameters", to={"rope_type": "spiral"}), "config.json|rope"),
    "activation of no kind": Case("load", config("text_config", "hidden_act", to="os.system"), "config.json|os.system"),
    # Names of classes.
    "architectures a function": Case("load", config("architectures", to=["pipeline"]), "architectures.*pipeline"),
    "architectures another class": Case("load", config("architectures", to=["Trainer"]), "architectures.*Trainer"),
    "architectures a tokenizer": Case("load", config("architectures", to=["AutoTokenizer"]), "architectures.*AutoTok"),
    "architectures a module": Case("load", config("architectures", to=["utils"]), "architectures.*utils"),
    "architectures numbers": Case("load", config("architectures", to=[3]), "architectures.*3"),
    "architectures a text": Case("load", config("architectures", to="LlavaOnevisionForConditionalGeneration"),
                                 "architectures"),
    "architectures another model": Case("load", config("architectures", to=["BertModel"]), "architectures.*BertModel"),
    "architectures the base class": Case("load", config("architectures", to=["PreTrainedModel"]), "architectures"),
    # Code, and names on the network.
    "code of a configuration": Case("load", several(code("config.json", AutoConfig="made.Made"),
                                    config("model_type", to="made")), "code of its own.*trust_remote_code"),
    "code of a model": Case("load", several(code("config.json", AutoModel="made.Made"),
                            config("architectures", to=["Made"])), ""),
    "code of a tokenizer": Case(
        "load", several(code("tokenizer_config.json", AutoTokenizer=[None, "made.Made"]),
                        changed("tokenizer_config.json", "tokenizer_class", to="Made"),
                        changed("tokenizer_config.json", "processor_class", to=None),
                        changed("processor_config.json", "processor_class", to=None)), "code of its own",
    ),
    "code of generation": Case("load", several(code(), written("custom_generate/requirements.txt", "nothing")), ""),
    "code of a processor": Case("load", several(code("processor_config.json", AutoProcessor="made.Made"),
                                changed("processor_config.json", "processor_class", to="Made")), "code of its own"),
    "code of an image processor": Case(
        "load", several(
            changed("processor_config.json", "image_processor", "image_processor_type", to="Made"),
            changed("processor_config.json", "image_processor", "auto_map", to={"AutoImageProcessor": "made.Made"}),
            code(),
        ), "code of its own|image_processor|Made",
    ),
    "processor class a function": Case("load", changed("processor_config.json", "processor_class", to="pipeline"),
                                       "processor_config.json|processor"),
    "tokenizer class a function": Case("load", changed("tokenizer_config.json", "tokenizer_class", to="pipeline"),
                                       "tokenizer"),
    "attention of the hub": Case("load", config("_attn_implementation", to="kernels-community/flash-mla"),
                                 "kernels-community/flash-mla.*config.json|config.json.*kernels-community/flash-mla"),
    "attention of the hub, paged": Case("load", config("attn_implementation", to="paged|someone/kernel@v1:run"),
                                        "someone/kernel"),
    "attention of the hub, nested": Case(
        "load", config("vision_config", "attn_implementation", to="someone/kernel:run"), "someone/kernel"
    ),
    "attention of the hub, by part": Case(
        "load", config("attn_implementation", to={"text_config": "someone/kernel"}), "someone/kernel"
    ),
    "experts of the hub": Case("load", config("experts_implementation", to="someone/kernel"), "someone/kernel"),
    "quantised": Case("load", config("quantization_config", to={"quant_method": "gptq", "bits": 4}), "quantised"),
    "adapter next to the model": Case(
        "load", written("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "/", "r": 1}'),
        "adapter_config.json",
    ),
    "weights elsewhere": Case("load", config("transformers_weights", to="../outside.safetensors"), "outside.safetensors"),
    # Tokenizer and processor.
    "tokenizer cut": Case("load", cut("tokenizer.json", 0.5), "tokenizer.json"),
    "tokenizer a page": Case("load", written("tokenizer.json", PAGE), "tokenizer.json.*HTML"),
    "tokenizer nested": Case("load", written("tokenizer.json", b'{"model":' * 100_000), "tokenizer.json"),
    "tokenizer that doubles a letter forty times": Case(
        "load", changed("tokenizer.json", "normalizer", to={
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "o"}, "content": "oo"}] * 40}),
        "tokenizer.json.*normalizer that lengthen a text 1.1e.12 times",
    ),
    "tokenizer that puts a book before a text": Case(
        "load", changed("tokenizer.json", "normalizer", to={"type": "Prepend", "prepend": "a" * 5_000_000}),
        "tokenizer.json.*5000000 characters in normalizer.prepend",
    ),
    "tokenizer that draws tokens": Case(
        "load", changed("tokenizer.json", "model", "dropout", to=0.9), "tokenizer.json.*model.dropout = 0.9"
    ),
    "labels without end": Case("load", config("num_labels", to=10**9), "num_labels = 1000000000"),
    "tiles without end": Case("load", config("image_grid_pinpoints", to=[[10**8 - 1] * 2]), "image_grid_pinpoints"),
    "tiles of nothing": Case("load", config("image_grid_pinpoints", to=[]), "image_grid_pinpoints"),
    "tokenizer of another type": Case("load", changed("tokenizer.json", "model", to={"type": "Sorcery"}), "tokenizer"),
    "tokenizer whose pattern backtracks": Case(
        "ask", several(
            changed("tokenizer.json", "pre_tokenizer", to={
                "type": "Split", "pattern": {"Regex": "(W(h)?|[a-z ]+)+!?(([A-Za-z ]+)+)+~"}, "behavior": "Isolated",
                "invert": False}),
        ), "tokenizer|refused its inputs",
    ),
    "tokenizer of more tokens than rows": Case(
        "ask", changed("tokenizer.json", "added_tokens", to=[
            {"id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for number, text in ((90_001, "What"), (0, "<|endoftext|>"), (1, "<|im_start|>"), (2, "<|im_end|>"),
                                 (3, "<image>"), (4, "<video>"))]), "",
    ),
    "tokenizer config a list": Case("load", written("tokenizer_config.json", "[]"), "tokenizer_config.json"),
    "processor config a page": Case("load", written("processor_config.json", PAGE), "processor_config.json.*HTML"),
    "pictures of 10**9": Case(
        "ask", changed("processor_config.json", "image_processor", "size", to={"height": 10**9, "width": 10**9}),
        "processor_config.json.*height",
    ),
    "pictures of 60000": Case(
        "ask", changed("processor_config.json", "image_processor", "size", to={"height": 60_000, "width": 60_000}),
        "processor_config.json",
    ),
    "pictures below zero": Case(
        "ask", changed("processor_config.json", "image_processor", "size", to={"height": -4, "width": 48}),
        "processor_config.json.*height",
    ),
    "tiles of 10**9": Case(
        "ask", changed("processor_config.json", "image_processor", "image_grid_pinpoints", to=[[10**9, 10**9]]),
        "processor_config.json.*image_grid_pinpoints",
    ),
    "a million tiles": Case(
        "ask", changed("processor_config.json", "image_processor", "image_grid_pinpoints", to=[[48, 48]] * 300_000),
        "processor_config.json.*image_grid_pinpoints",
    ),
    "tokens for a picture 10**9": Case("ask", changed("processor_config.json", "num_image_tokens", to=10**9),
                                       "processor_config.json.*num_image_tokens"),
    "generation config a list": Case("load", written("generation_config.json", "[]"), "generation_config.json"),
    # Chat templates.
    "template that raises": Case("ask", template("{{ raise_exception('no') }}"), "chat template"),
    "template of no grammar": Case("ask", template("{% for %}"), "chat template"),
    "template of loops": Case("ask", template(GRAPHEMES), "chat template.*seconds"),
    "template of three billion letters": Case("ask", template("{{ 'a' * 3000000000 }}"), "chat template"),
    "template of a power": Case("ask", template("{{ 9 ** (9 ** 9) }}"), "chat template"),
    "template that doubles": Case(
        "ask", template("{% set ns = namespace(a='ab') %}{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}"
                        "{% endfor %}{{ ns.a }}"), "chat template",
    ),
    "template of macros": Case("ask", template(MACROS), "chat template"),
    "template that recurs": Case("ask", template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "chat template"),
    "template of a billion laughs": Case("ask", template(LAUGHS), "chat template"),
    "template padded": Case("ask", template("{{ 'a'|center(3000000000) }}"), "chat template"),
    "template that prints on": Case(
        "ask", template("{% for i in range(90000) %}{% for j in range(900) %}{{ 'aaaaaaaaaaaaaaaa' }}{% endfor %}"
                        "{% endfor %}"), "chat template",
    ),
    "template out of the sandbox": Case(
        "ask", template("{{ ''.__class__.__mro__[1].__subclasses__()|length }}{{ messages.__class__.__base__ + 1 }}"),
        "chat template",
    ),
    "template by format": Case("ask", template("{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}"),
                               "chat template"),
    "template nested": Case("ask", template("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}"), "chat template"),
    "template of one letter thrice": Case("ask", template("{{ messages[0].content.foo.bar }}"), "chat template"),
    # What lies there in place of files.
    "config a pipe": Case("load", fifo("config.json"), "config.json.*regular file"),
    "weights a pipe": Case("load", fifo(WEIGHTS), "model.safetensors.*regular file"),
    "tokenizer a pipe": Case("load", fifo("tokenizer.json"), "tokenizer.json.*regular file"),
    "template a pipe": Case("load", fifo("chat_template.jinja"), "chat_template.jinja.*regular file"),
    "weights a device": Case("load", linked(WEIGHTS, "/dev/zero"), "model.safetensors.*regular file"),
    "config a device": Case("load", linked("config.json", "/dev/zero"), "config.json.*regular file"),
    "config a link to itself": Case("load", linked("config.json", "config.json"), "config.json"),
    "weights that may not be read": Case("load", lambda f: (f / WEIGHTS).chmod(0), "model.safetensors.*read"),
    "config that may not be read": Case("load", lambda f: (f / "config.json").chmod(0), "config.json.*read"),
    # What a training of an audio-LLaMA left.
    "checkpoint with code": Case("convert", top(lambda f, s: saved({**s, "x": _Runs(f.parent / CANARY)})), TOP),
    "checkpoint a plain pickle": Case("convert", top(lambda f, s: pickle.dumps(_Runs(f.parent / CANARY))), TOP),
    "checkpoint cut": Case("convert", cut(TOP, 0.5), f"{TOP}.*(cut|missing|end)"),
    "checkpoint empty": Case("convert", written(TOP, b""), f"{TOP}.*empty"),
    "checkpoint a pointer": Case("convert", written(TOP, POINTER), f"{TOP}.*git lfs pull"),
    "checkpoint a pipe": Case("convert", fifo(TOP), TOP),
    "checkpoint a list": Case("convert", top(lambda f, s: saved([1, 2])), TOP),
    "checkpoint a bomb": Case("convert", top(lambda f, s: deflated(saved(s), 3 << 30)), f"{TOP}.*compressed"),
    "checkpoint of numbers as names": Case("convert", top(lambda f, s: saved({3: torch.ones(2)})), TOP),
    "checkpoint of a billion rows": Case(
        "convert", top(lambda f, s: saved(expanded(s, next(n for n in s if "embed_tokens" in n)))), TOP
    ),
    "checkpoint of sparse tensors": Case(
        "convert", top(lambda f, s: saved({**s, "projector.proj1.bias": torch.ones(32).to_sparse()})), "projector|proj1"
    ),
    "adapter whose pattern backtracks": Case(
        "convert", changed(ADAPTER, "target_modules", to=r"(([a-z_\.0-9]+)+)+[QV]_proj"), "target_modules"
    ),
    "adapter whose excluded pattern backtracks": Case(
        "convert", changed(ADAPTER, "exclude_modules", to=r"(([a-z_\.0-9]+)+)+[QV]_proj"), "exclude_modules"
    ),
    "adapter whose ranks' pattern backtracks": Case(
        "convert", changed(ADAPTER, "rank_pattern", to={r"(([a-z_\.0-9]+)+)+[QV]": 4}), "rank_pattern"
    ),
    "adapter of a pattern of no grammar": Case("convert", changed(ADAPTER, "target_modules", to="(q_proj"), "adapter"),
    "adapter of no base": Case("convert", changed(ADAPTER, "base_model_name_or_path", to=["/etc"]), "adapter"),
    "adapter of rank 0": Case("convert", changed(ADAPTER, "r", to=0), "adapter"),
    "adapter of rank 10**9": Case("convert", changed(ADAPTER, "r", to=10**9), "adapter.*rank|adapter.* r "),
    "adapter of rank a text": Case("convert", changed(ADAPTER, "r", to="four"), "adapter"),
    "adapter of ranks 10**9": Case("convert", changed(ADAPTER, "rank_pattern", to={"q_proj": 10**9}), "adapter"),
    "adapter that saves modules of no name": Case("convert", changed(ADAPTER, "modules_to_save", to=["nothing"]), ""),
    "adapter that saves every module": Case("convert", changed(ADAPTER, "modules_to_save", to=["layers"]), "adapter"),
    "adapter that repeats layers": Case("convert", changed(ADAPTER, "layer_replication", to=[[0, 3]] * 10**4),
                                        "layer_replication"),
    "adapter that imports": Case(
        "convert", several(changed(ADAPTER, "megatron_config", to={"a": 1}), changed(ADAPTER, "megatron_core", to="this")),
        "megatron_config",
    ),
    "adapter of no kind": Case("convert", changed(ADAPTER, "peft_type", to="MAGIC"), "adapter"),
    "adapter config nested": Case("convert", written(ADAPTER, NESTED), "adapter_config.json"),
    "adapter config a pipe": Case("convert", fifo(ADAPTER), "adapter_config.json"),
    "adapter weights cut": Case("convert", cut("multimodal/adapter_model.safetensors", 0.5),
                                "adapter_model.safetensors.*missing"),
    "adapter weights a pickle": Case(
        "convert", several(
            lambda f: (f / "multimodal/adapter_model.safetensors").unlink(),
            lambda f: (f / "multimodal/adapter_model.bin").write_bytes(saved({"x": _Runs(f.parent / CANARY)})),
        ), "adapter_model.bin",
    ),
    "base layers 10**9": Case("convert", changed("base/config.json", "num_hidden_layers", to=10**9), "num_hidden_layers"),
    "base with code": Case("convert", several(code("base/config.json", AutoConfig="made.Made"),
                           changed("base/config.json", "model_type", to="made")), "code of its own"),
    "base attention of the hub": Case("convert", changed("base/config.json", "attn_implementation", to="someone/kernel"),
                                      "someone/kernel"),
    "base weights cut": Case("convert", cut("base/model.safetensors", 0.5), "model.safetensors.*missing"),
    "acoustic weights cut": Case("convert", cut("acoustic/model.safetensors", 0.5), "model.safetensors.*missing"),
    "acoustic kernel 10**9": Case("convert", changed("acoustic/config.json", "num_conv_pos_embeddings", to=10**9),
                                  "num_conv_pos_embeddings"),
    "extractor of no kind": Case(
        "convert", changed("acoustic/preprocessor_config.json", "feature_extractor_type", to="pipeline"), "preprocessor|feature"
    ),
    "extractor with code": Case(
        "convert", several(code("acoustic/preprocessor_config.json", AutoFeatureExtractor="made.Made"),
                           changed("acoustic/preprocessor_config.json", "feature_extractor_type", to="Made")), "code of its own"
    ),
}  # fmt: skip
