"""A checkpoint of an audio-LLaMA training, made here with random weights, against its modules put together by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from audio_llamas import LARGE, WAVEFORM, manual_vectors, sound
from models import largest_difference, randomise, text_config
from torch import nn
from typer.testing import CliRunner

import lensplug
from lensplug.audio_llama.convert import convert
from lensplug.cli import app
from lensplug.tiny.sound_model import build_tokenizer

ROWS = 528
"""The tokenizer's 520 tokens and some more, a multiple of 8."""


class Projector(nn.Module):
    """As its training wrote it."""

    def __init__(self) -> None:
        super().__init__()
        self.proj1 = nn.Linear(32, 32)
        self.norm = hf.models.llama.modeling_llama.LlamaRMSNorm(32)
        self.proj2 = nn.Linear(32, 32)

    def forward(self, x):
        return self.proj2(self.norm(nn.functional.silu(self.proj1(x))))


class Training(nn.Module):
    """The modules as they stood at the end of a training, the last adapter not merged."""

    def __init__(self, llama, wave2vec2, projector) -> None:
        super().__init__()
        self.llama, self.wave2vec2, self.projector = llama, wave2vec2, projector

    @torch.no_grad()
    def logits(self, tokenizer, prompts, waveforms):
        """Prompts with one sound each, padded on the left, everything written out."""
        embed, rows = self.llama.get_input_embeddings(), []
        dtype = self.wave2vec2.dtype
        for prompt, waveform in zip(prompts, waveforms, strict=True):
            normed = torch.from_numpy((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7))[None].to(dtype)
            vectors = self.projector(manual_vectors(self.wave2vec2(normed).last_hidden_state[0], 10))
            before, after = (tokenizer(part, return_tensors="pt")["input_ids"][0] for part in prompt.split("<audio>"))
            rows.append(torch.cat([embed(before.long()), vectors, embed(after.long())]))
        longest = max(map(len, rows))
        padded = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        mask = torch.stack([torch.tensor([0] * (longest - len(row)) + [1] * len(row)) for row in rows])
        return self.llama(inputs_embeds=padded, attention_mask=mask).logits, mask


def lora(model, seed, **changes):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **changes)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return adapted.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Base, acoustic model, two adapters, and the modules at the end of the training."""
    root = tmp_path_factory.mktemp("training")
    tokenizer = build_tokenizer()
    base = randomise(hf.LlamaForCausalLM(text_config("Llama", vocab_size=512)))
    base.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    wave2vec2 = randomise(hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WAVEFORM, **LARGE)), 1)
    wave2vec2.save_pretrained(root / "acoustic")
    hf.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / "acoustic")
    base.resize_token_embeddings(ROWS, mean_resizing=False)
    randomise(base.get_input_embeddings(), 5)
    base.name_or_path = "somewhere/else/base"
    text_only = lora(base, 2)
    text_only.save_pretrained(root / "text", save_embedding_layers=False)
    multimodal = lora(text_only.merge_and_unload(), 3)
    multimodal.save_pretrained(root / "multimodal", save_embedding_layers=False)
    generator = torch.Generator().manual_seed(4)
    for name, weight in multimodal.named_parameters():  # trained on, after the folder was written
        if "lora_" in name:
            weight.data.add_(0.2 * torch.randn(weight.shape, generator=generator))
    projector = randomise(Projector(), 6)
    randomise(wave2vec2, 7)
    training = Training(multimodal, wave2vec2, projector).eval()
    torch.save(training.state_dict(), root / "best_model.pth")
    return root, tokenizer, training


PROMPTS = ["we won <audio> the game", "<audio> today"]


def checkpoint(root, name, change):
    state = torch.load(root / "best_model.pth", weights_only=True)
    torch.save(change(state), root / name)
    return root / name


def run(root, path, out, **options):
    arguments = {"adapters": [root / "text", root / "multimodal"], **options}
    return convert(root / "base", root / "acoustic", path, out, **arguments)


def plain(state):
    """The language model's own names, its adapter merged by hand: W + (alpha / r) B A."""
    merged = {}
    for name, value in state.items():
        if "lora_" in name:
            continue
        if name.endswith("base_layer.weight"):
            stem = name.removesuffix("base_layer.weight")
            value = value + 2 * state[f"{stem}lora_B.default.weight"] @ state[f"{stem}lora_A.default.weight"]
        merged[name.replace("base_model.model.", "").replace("base_layer.", "")] = value
    return merged


def other_spelling(state):
    new = "conv.parametrizations.weight.original"
    return {
        name.replace(new + "0", "conv.weight_g").replace(new + "1", "conv.weight_v"): v for name, v in state.items()
    }


FORMS = {
    "with its adapter, whole": lambda state: state,
    "plain": plain,
    "weight norm of older torch": other_spelling,
    "buffers of older transformers": lambda s: {**s, "llama.base_model.model.model.rotary_emb.inv_freq": torch.ones(4)},
    "without the mask vector": lambda s: {n: v for n, v in s.items() if "masked_spec_embed" not in n},
}


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_the_modules_put_together_by_hand(form, folders, tmp_path):
    root, tokenizer, training = folders
    path = checkpoint(root, "form.pth", FORMS[form])
    out = run(root, path, tmp_path / "out")
    lens = lensplug.load(out)
    waveforms = [sound(0.4), sound(0.7, 1)]
    expected, mask = training.logits(tokenizer, PROMPTS, waveforms)
    audio = [[(waveform, 16000)] for waveform in waveforms]
    inputs = lens.prepare(PROMPTS, audio=audio, chat_template=False)
    assert torch.equal(inputs.attention_mask, mask)
    logits = lens.hf_model(**inputs.model_inputs).logits
    assert largest_difference(logits, expected, mask) < 1e-4
    assert lens.check(inputs).agrees
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@torch.no_grad()
def test_only_the_trained_adapter_weights(folders, tmp_path):
    """The base is then what the folders say: its rows for new tokens are the base's own."""
    root, tokenizer, training = folders
    path = checkpoint(root, "lora.pth", lambda s: {n: v for n, v in s.items() if "llama" not in n or "lora_" in n})
    small = {"prompts": ["<audio> won"], "waveforms": [sound(0.4)]}
    with_base = hf.AutoModelForCausalLM.from_pretrained(root / "base")
    model = hf.AutoModelForMultimodalLM.from_pretrained(run(root, path, tmp_path / "out")).eval()
    embed = training.llama.get_input_embeddings()
    kept = embed.weight.data.clone()
    try:
        # Of the training only what the file has: the first 512 rows of the base, nothing of the rest is read here.
        embed.weight.data[:512] = with_base.get_input_embeddings().weight
        expected, _ = training.logits(tokenizer, **small)
    finally:
        embed.weight.data.copy_(kept)
    processor = hf.AutoProcessor.from_pretrained(tmp_path / "out")
    batch = processor(text=small["prompts"], audio=small["waveforms"], sampling_rate=16000)
    assert largest_difference(model(**batch).logits[..., :512], expected[..., :512]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(dtype, folders, tmp_path):
    root, _, _ = folders
    path = checkpoint(root, "half.pth", lambda s: {n: v.to(dtype) for n, v in plain(s).items()})
    model = hf.AutoModelForMultimodalLM.from_pretrained(run(root, path, tmp_path / "out"), dtype="auto")
    assert {p.dtype for p in model.parameters()} == {dtype}
    given, own = torch.load(path, weights_only=True), model.state_dict()
    for name, old in {
        "model.language_model.layers.1.mlp.up_proj.weight": "llama.model.layers.1.mlp.up_proj.weight",
        "model.projector.proj2.weight": "projector.proj2.weight",
        "model.audio_tower.feature_projection.projection.weight": "wave2vec2.feature_projection.projection.weight",
        "lm_head.weight": "llama.lm_head.weight",
    }.items():
        assert torch.equal(own[name], given[old])


@torch.no_grad()
@pytest.mark.parametrize("only_trained", [False, True])
def test_embeddings_trained_with_the_adapter(only_trained, folders, tmp_path):
    """peft keeps them under modules_to_save, beside the original."""
    root, tokenizer, training = folders
    base = hf.AutoModelForCausalLM.from_pretrained(root / "base")
    base.resize_token_embeddings(ROWS, mean_resizing=False)
    adapted = lora(base, 8, modules_to_save=["embed_tokens", "lm_head"])
    adapted.save_pretrained(tmp_path / "adapter")
    for name, weight in adapted.named_parameters():
        if "modules_to_save" in name:
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(9)))
    other = Training(adapted, training.wave2vec2, training.projector).eval()
    state = other.state_dict()
    if only_trained:
        names = ("lora_", "modules_to_save", "wave2vec2.", "projector.")
        state = {n: v for n, v in state.items() if any(name in n for name in names)}
    torch.save(state, tmp_path / "best_model.pth")
    out = run(root, tmp_path / "best_model.pth", tmp_path / "out", adapters=[tmp_path / "adapter"])
    model, processor = hf.AutoModelForMultimodalLM.from_pretrained(out).eval(), hf.AutoProcessor.from_pretrained(out)
    batch = processor(text=PROMPTS[:1], audio=[sound(0.4)], sampling_rate=16000)
    assert largest_difference(model(**batch).logits, other.logits(tokenizer, PROMPTS[:1], [sound(0.4)])[0]) < 1e-4


def test_the_acoustic_model_of_the_folder_where_the_checkpoint_has_none(folders, tmp_path):
    root, _, _ = folders
    path = checkpoint(root, "frozen.pth", lambda s: {n: v for n, v in s.items() if not n.startswith("wave2vec2")})
    model = hf.AutoModelForMultimodalLM.from_pretrained(run(root, path, tmp_path / "out"))
    expected = hf.AutoModel.from_pretrained(root / "acoustic").state_dict()
    assert all(torch.equal(v, expected[n]) for n, v in model.model.audio_tower.state_dict().items())


def _without(part):
    return lambda state: {name: value for name, value in state.items() if part not in name}


def _wrong_shape(state):
    return {**state, "projector.proj2.weight": torch.zeros(48, 32)}


def _mixed(state):
    return {name: value.half() if name.startswith("projector") else value for name, value in state.items()}


REFUSED = {
    r"begin with none of .*: optimizer.step": lambda s: {**s, "optimizer.step": torch.zeros(1)},
    r"weights that the language model with its adapter has not: .*layers.9": lambda s: {
        **s, "llama.base_model.model.model.layers.9.mlp.up_proj.weight": torch.zeros(1)
    },
    "lacks weights of the projector: proj1.weight": _without("proj1.weight"),
    r"lacks weights of the projector: .*proj2.weight": _without("projector"),
    r"lacks weights of the acoustic model: encoder.layers.0": _without("wave2vec2.encoder.layers.0"),
    r"lacks weights of the language model with its adapter: .*lora_A": _without("layers.1.self_attn.v_proj.lora_A"),
    r"proj2.weight of the projector is \[48, 32\] in the checkpoint, and \[32, 32\]": _wrong_shape,
    r"different dtypes \(language model float32, acoustic model float32, projector float16\): give dtype": _mixed,
    r"is no state dict \(it holds \['model', 'epoch'\]\)": lambda s: {"model": s, "epoch": 3},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refuses_and_writes_nothing(message, folders, tmp_path):
    root, _, _ = folders
    path = checkpoint(root, "wrong.pth", REFUSED[message])
    with pytest.raises(lensplug.LensplugError, match=message):
        run(root, path, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_given_dtype_settles_mixed_parts(folders, tmp_path):
    root, _, _ = folders
    path = checkpoint(root, "mixed.pth", _mixed)
    model = hf.AutoModelForMultimodalLM.from_pretrained(run(root, path, tmp_path / "out", dtype=torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_refuses_a_file_that_could_run_code(folders, tmp_path, capsys):
    root, _, _ = folders
    torch.save({"llama.x": Code()}, root / "code.pth")
    with pytest.raises(lensplug.LensplugError, match="holds more than tensors, and opening it could run code"):
        run(root, root / "code.pth", tmp_path / "out")
    (root / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(lensplug.LensplugError, match="broken.pth"):
        run(root, root / "broken.pth", tmp_path / "out")
    assert "run" not in capsys.readouterr().out


def test_refuses_what_is_not_there_and_what_is_there_already(folders, tmp_path):
    root, _, _ = folders
    good = root / "best_model.pth"
    with pytest.raises(lensplug.LensplugError, match=r"there is no file .*nowhere.pth"):
        run(root, root / "nowhere.pth", tmp_path / "out")
    with pytest.raises(lensplug.LensplugError, match="could not be loaded"):
        convert(root / "nowhere", root / "acoustic", good, tmp_path / "out")
    with pytest.raises(lensplug.LensplugError, match="LoRA weights: give the folder of their adapter"):
        run(root, good, tmp_path / "out", adapters=[])
    with pytest.raises(lensplug.LensplugError, match="is no adapter: it has no adapter_config.json"):
        run(root, good, tmp_path / "out", adapters=[root / "base"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(lensplug.LensplugError, match="exists already: give a new folder"):
        run(root, good, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def _adapter(root: Path, folder: Path, **changes) -> Path:
    """A copy of the text adapter, its configuration changed."""
    folder.mkdir()
    config = json.loads((root / "text" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    (folder / "adapter_model.safetensors").write_bytes((root / "text" / "adapter_model.safetensors").read_bytes())
    return folder


def test_refuses_an_adapter_for_another_base_model(folders, tmp_path):
    root, _, _ = folders
    path = checkpoint(root, "plain.pth", plain)
    named = _adapter(root, tmp_path / "named", base_model_name_or_path="meta-llama/Llama-2-7b-hf")
    with pytest.raises(
        lensplug.LensplugError, match="'named' is for 'meta-llama/Llama-2-7b-hf', and the base is 'base'"
    ):
        run(root, path, tmp_path / "out", adapters=[named])
    assert run(root, path, tmp_path / "allowed", adapters=[named], allow_other_base=True).is_dir()
    shaped = _adapter(root, tmp_path / "shaped", r=8)
    with pytest.raises(lensplug.LensplugError, match="'shaped' does not fit the model.*size mismatch"):
        run(root, path, tmp_path / "out", adapters=[shaped])
    targets = _adapter(root, tmp_path / "targets", target_modules=["q_proj"])
    with pytest.raises(lensplug.LensplugError, match="'targets' is for another model.*v_proj"):
        run(root, path, tmp_path / "out", adapters=[targets])
    foreign = _adapter(root, tmp_path / "foreign", target_modules=["query_key_value"])
    with pytest.raises(lensplug.LensplugError, match="'foreign' does not fit the model.*query_key_value"):
        run(root, path, tmp_path / "out", adapters=[foreign])
    assert not (tmp_path / "out").exists()


def test_the_command(folders, tmp_path):
    root, _, _ = folders
    arguments = ["convert-audio-llama", "--base", root / "base", "--acoustic", root / "acoustic"]
    arguments += ["--adapter", root / "text", "--adapter", root / "multimodal"]
    arguments += ["--checkpoint", root / "best_model.pth", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "model.safetensors").exists()
    again = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert again.exit_code == 2
