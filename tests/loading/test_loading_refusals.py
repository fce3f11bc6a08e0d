"""What `load` and `wrap` do not take: each refused in words that say what to type, before weights are read."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.models import largest_difference, llava, llava_onevision, text_config, text_model, wrapped_logits

import lensplug
from lensplug import LensplugError
from lensplug.tiny import CHECKPOINTS

TINY = CHECKPOINTS / "llava-onevision"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the tiny checkpoint, in which links save the weights."""
    made = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(TINY, made, copy_function=lambda one, other: shutil.copy(one, other))
    return made


@pytest.fixture
def no_weights_read(monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("weights are read")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", read)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no GPU": ({"device": "cuda:7"}, "device is 'cuda:7', and there is none here.*device='cpu'"),
    "meta": ({"device": "meta"}, "device is 'meta', where weights have no numbers"),
    "misspelt device": ({"device": "gpu"}, "device is 'gpu', which torch does not know"),
    "misspelt dtype": ({"dtype": "bfloat"}, "dtype is 'bfloat', expected 'auto' or one of 'float32'"),
    "dtype of integers": ({"dtype": torch.int8}, "dtype is torch.int8, expected"),
    "torch_dtype": ({"torch_dtype": "bfloat16"}, "the argument is called dtype"),
    "engine": ({"engine": "nnsight"}, "engine is 'nnsight', expected 'auto'"),
    "flash attention": ({"attn_implementation": "flash_attention_2"}, "flash_attention_2' needs a package"),
    "misspelt attention": ({"attn_implementation": "spda"}, "attn_implementation is 'spda', expected one of"),
    "attention of a part": ({"attn_implementation": {"vision_config": "spda"}}, "attn_implementation is 'spda'"),
    "4 bits": ({"load_in_4bit": True}, "load_in_4bit=True: lensplug.load loads whole weights"),
    "quantisation": ({"quantization_config": {"load_in_8bit": True}}, "quantization_config=.*whole weights"),
    "offload": ({"offload_folder": "there"}, "offload_folder='there': lensplug.load loads to one device"),
    "auto map": ({"device_map": "auto"}, "device_map='auto': lensplug.load loads to one device"),
    "split map": ({"device_map": {"model": 0, "lm_head": "disk"}}, "device_map=.*lensplug.load loads to one device"),
    "other map": ({"device_map": "cuda:1", "device": "cpu"}, "device='cpu' and device_map='cuda:1' differ"),
    "mismatched": ({"ignore_mismatched_sizes": True}, "would be random numbers"),
    "unknown": ({"max_pixels": 3}, "load takes no 'max_pixels'.*lensplug.wrap"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_are_refused_before_weights_are_read(no_weights_read, what):
    options, message = REFUSED[what]
    with pytest.raises(LensplugError, match=message):
        lensplug.load(TINY, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(no_weights_read):
    with pytest.raises(
        LensplugError, match="device is 'cuda', and there is none here that torch can use: give device="
    ):
        lensplug.load(TINY, device="cuda")
    with pytest.raises(LensplugError, match="device is 'cuda'"):
        lensplug.tiny.audio_llama(device="cuda")


def test_options_that_change_nothing_go_on():
    options: dict[str, Any] = {
        "device_map": {"": "cpu"},
        "attn_implementation": "eager",
        "local_files_only": True,
        "use_safetensors": True,
    }
    lens = lensplug.load(str(TINY), dtype="torch.float32", trust_remote_code=False, load_in_8bit=False, **options)
    assert lens.core.device.type == "cpu" and lens.core.dtype == torch.float32
    tokens = torch.arange(12)[None]
    assert largest_difference(*(wrapped_logits(one, tokens) for one in (lens, lensplug.tiny.llava_onevision()))) < 1e-5


LACKING = {
    "nothing": (["*"], "the folder is empty"),
    "config.json": (["config.json"], "it has no config.json"),
    "weights": (["model.safetensors"], r"it has no weights \(\*.safetensors"),
    "processor": (["processor_config.json"], "it has no processor_config.json or preprocessor_config.json"),
    "processor and tokenizer": (["processor_config.json", "token*"], "it has no processor and no tokenizer"),
}


@pytest.mark.parametrize("what", LACKING)
def test_a_folder_that_lacks_something(tmp_path, no_weights_read, what):
    patterns, message = LACKING[what]
    shutil.copytree(TINY, tmp_path / "model")
    for pattern in patterns:
        for file in (tmp_path / "model").glob(pattern):
            file.unlink()
    with pytest.raises(LensplugError, match=f"model' could not be loaded: {message}"):
        lensplug.load(tmp_path / "model")


def test_what_is_no_folder(folder, no_weights_read, tmp_path, monkeypatch):
    with pytest.raises(LensplugError, match="it is a file. Give the folder that it is in"):
        lensplug.load(folder / "model.safetensors")
    with pytest.raises(LensplugError, match="there is no such folder"):
        lensplug.load("")
    with pytest.raises(LensplugError, match="no network .or HF_HUB_OFFLINE is set.*give a folder"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        lensplug.load("nobody/no-model-of-that-name", cache_dir=str(tmp_path), local_files_only=True)
    monkeypatch.setenv("HOME", str(folder.parent))
    with pytest.raises(LensplugError, match="weights are read"):  # "~" is understood
        lensplug.load("~/model", device="cpu")


def test_weights_that_are_broken_quantised_or_of_another_model(folder, tmp_path):
    made = tmp_path / "model"
    shutil.copytree(folder, made)
    config = json.loads((made / "config.json").read_text())
    weights = load_file(made / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file(
        {key: value for key, value in weights.items() if key != name}, made / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(LensplugError, match=f"lack 1 of a Llava.*{name.split('layers')[1]}.*would be random numbers"):
        lensplug.load(made, device="cpu")
    save_file({**weights, name: weights[name][:, :3].clone()}, made / "model.safetensors", {"format": "pt"})
    with pytest.raises(LensplugError, match="could not be loaded.*"):
        lensplug.load(made, device="cpu")
    (made / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(LensplugError, match="model.safetensors' is no safetensors file"):
        lensplug.load(made, device="cpu")
    (made / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(LensplugError, match=r"are quantised \(awq\), and lensplug.load loads whole weights"):
        lensplug.load(made, device="cpu")
    own = {"model_type": "their_own", "auto_map": {"AutoConfig": "code.Config"}}
    (made / "config.json").write_text(json.dumps(own))
    with pytest.raises(LensplugError, match="it has code of its own.*lensplug.wrap"):
        lensplug.load(made, device="cpu")


@pytest.fixture(scope="module")
def pair():
    return llava_onevision()


WRAPPED = {
    "exchanged": (lambda model, processor: (processor, model), "the model comes first, lensplug.wrap"),
    "no model": (lambda model, processor: (processor,), "the first argument is a Llava.*the model comes first"),
    "class": (lambda model, processor: (type(model), processor), "is a class, and no model yet: .*from_pretrained"),
    "state dict": (lambda model, processor: (model.state_dict(), processor), "this is a state dict"),
    "config": (lambda model, processor: (model.config, processor), "this is a configuration"),
    "name": (lambda model, processor: ("some/model", processor), r"lensplug.load\('some/model'\) loads one by name"),
    "tokenizer": (lambda model, processor: (model, processor.tokenizer), "reads words, and .* takes image"),
    "image processor": (lambda model, processor: (model, processor.image_processor), "has no tokenizer"),
    "processor's name": (lambda model, processor: (model, "some/model"), "processor is 'some/model', expected one in"),
    "processor's class": (lambda model, processor: (model, type(processor)), "processor is the class Llava"),
    "no torch": (lambda model, processor: (object(), processor), "has no get_decoder"),
}


@pytest.mark.parametrize("what", WRAPPED)
def test_what_is_no_model_with_its_processor(pair, what):
    arguments, message = WRAPPED[what]
    with pytest.raises(LensplugError, match=message):
        lensplug.wrap(*arguments(*pair), check=False)


def test_the_processor_of_another_model_and_parts_on_meta(pair):
    other, processor = llava()
    other.config.image_token_id = 7
    with pytest.raises(LensplugError, match="this processor is of another model: its image placeholder is the token"):
        lensplug.wrap(other, processor)
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(text_config("Llama")).eval()
    with pytest.raises(LensplugError, match="is on the meta device: its weights are not loaded"):
        lensplug.wrap(empty)
    model, processor = llava()
    model.model.vision_tower.to("meta")
    with pytest.raises(LensplugError, match=r"on the meta device: .*\(model.vision_tower"):
        lensplug.wrap(model, processor)
    split = text_model("Llama")
    split.hf_device_map = {"model": 0, "lm_head": "cpu"}
    with pytest.raises(LensplugError, match=r"is on several devices \(0, cpu\), and has lost the hooks"):
        lensplug.wrap(split)
