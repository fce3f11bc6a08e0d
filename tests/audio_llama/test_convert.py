"""A checkpoint of an audio-LLaMA training, made here with random weights, against its modules put together by hand."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers as hf
from audio_llamas import LARGE, WAVEFORM, manual_vectors, sound
from models import largest_difference, randomise, text_config
from torch import nn
from typer.testing import CliRunner

import lensplug
from lensplug.audio_llama import AudioLlamaProcessor
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


def renamed(old, new):
    return lambda state: {name.replace(old, new): value for name, value in state.items()}


def trained_alone(state):
    """What had gradients, where the embeddings were trained without peft."""
    trained = ("lora_", "embed_tokens", "lm_head", "wave2vec2.", "projector.")
    return {name: value for name, value in state.items() if any(part in name for part in trained)}


FORMS = {
    "with its adapter, whole": lambda state: state,
    "plain": plain,
    "adapter and embeddings alone": trained_alone,
    "peft before 0.6": renamed(".base_layer", ""),
    "adapter under another name": renamed(".default.", ".emotion."),
    "adapter as peft saves it": renamed(".default.", "."),
    "adapter put in without a wrapper": renamed("base_model.model.", ""),
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
    # In double precision: in single, rounding alone moved the logits of these random models by 1.5e-4 on one processor.
    expected, mask = copy.deepcopy(training).double().logits(tokenizer, PROMPTS, waveforms)
    audio = [[(waveform, 16000)] for waveform in waveforms]
    inputs = lens.prepare(PROMPTS, audio=audio, chat_template=False)
    assert torch.equal(inputs.attention_mask, mask)
    assert lens.check(inputs).agrees
    given = {name: one.double() if one.is_floating_point() else one for name, one in inputs.model_inputs.items()}
    assert largest_difference(lens.hf_model.double()(**given).logits, expected, mask) < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def logits_of(out):
    """Of the folder, as transformers opens it."""
    model, processor = hf.AutoModelForMultimodalLM.from_pretrained(out).eval(), hf.AutoProcessor.from_pretrained(out)
    with torch.no_grad():
        return model(**processor(text=PROMPTS[:1], audio=[sound(0.4)], sampling_rate=16000)).logits


def lora_alone(state):
    return {name: value for name, value in state.items() if "llama" not in name or "lora_" in name}


def trained_on(folders, base, tmp_path, **options):
    """Another training on `base`; its adapter is saved."""
    _, _, other = folders
    adapted = lora(base, 8, **options)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return Training(adapted, other.wave2vec2, other.projector).eval()


@pytest.mark.parametrize("embeddings", ["of the base", "in the adapters"])
def test_the_adapter_weights_alone(embeddings, folders, tmp_path):
    """peft saves the embeddings with an adapter where they have other rows than the base, or where it is asked to."""
    root, tokenizer, other = folders
    base, rows = randomise(hf.LlamaForCausalLM(text_config("Llama", vocab_size=len(tokenizer))), 11), len(tokenizer)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    if embeddings == "in the adapters":
        base.resize_token_embeddings(ROWS, mean_resizing=False)
        rows = ROWS
    text_only = lora(base, 2)
    text_only.save_pretrained(tmp_path / "text", save_embedding_layers=rows == ROWS)
    multimodal = lora(text_only.merge_and_unload(), 3)
    multimodal.save_pretrained(tmp_path / "multimodal", save_embedding_layers=rows == ROWS)
    training = Training(multimodal, other.wave2vec2, other.projector).eval()
    torch.save(lora_alone(training.state_dict()), tmp_path / "lora.pth")
    adapters = [tmp_path / "text", tmp_path / "multimodal"]
    convert(tmp_path / "base", root / "acoustic", tmp_path / "lora.pth", tmp_path / "out", adapters=adapters)
    expected, _ = training.logits(tokenizer, PROMPTS[:1], [sound(0.4)])
    assert expected.shape[-1] == rows
    assert largest_difference(logits_of(tmp_path / "out"), expected) < 1e-4


def test_a_new_audio_token_gets_a_row_and_other_tokens_without_rows_are_refused(folders, tmp_path):
    root, tokenizer, _ = folders
    base = randomise(hf.LlamaForCausalLM(text_config("Llama", vocab_size=len(tokenizer))), 11)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    path = checkpoint(root, "lora.pth", lora_alone)
    adapters = [root / "text", root / "multimodal"]
    out = convert(
        tmp_path / "base", root / "acoustic", path, tmp_path / "out", adapters=adapters, audio_token="<sound>"
    )
    model = hf.AutoModelForMultimodalLM.from_pretrained(out)
    assert model.config.audio_token_id == 520 and model.lm_head.weight.shape == (ROWS, 32)
    assert torch.allclose(model.lm_head.weight[520:], base.lm_head.weight.mean(0), atol=1e-6)
    assert torch.equal(model.get_input_embeddings().weight[:520], base.get_input_embeddings().weight)
    with pytest.raises(lensplug.LensplugError, match="tokens that no embeddings were found for.*base has 512 rows"):
        run(root, path, tmp_path / "no")


def own_name(name):
    """Of a weight in the checkpoint, as the converted model has it."""
    for old, new in {
        "llama.model.": "model.language_model.", "llama.": "", "wave2vec2.": "model.audio_tower.",
        "projector.": "model.projector.",
    }.items():  # fmt: skip
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise AssertionError(name)


@torch.no_grad()
@pytest.mark.parametrize("form", ["plain", "with its adapter"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(dtype, form, folders, tmp_path):
    """Bit by bit; where an adapter is merged, to the last bit."""
    root, _, _ = folders
    whole = torch.load(root / "best_model.pth", weights_only=True)
    # peft keeps adapters in single precision over a model in half
    half = {n: v if "lora_" in n else v.to(dtype) for n, v in (plain(whole) if form == "plain" else whole).items()}
    torch.save(half, tmp_path / "half.pth")
    run(root, tmp_path / "half.pth", tmp_path / "out")
    model = hf.AutoModelForMultimodalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {dtype}
    own = model.state_dict()
    merged = {own_name(n): v for n, v in plain({n: v.float() for n, v in half.items()}).items()}
    assert set(merged) == set(own)
    for name, value in merged.items():
        if form == "plain" or not name.endswith(("q_proj.weight", "v_proj.weight")):
            assert torch.equal(own[name], value.to(dtype)), name
        else:
            assert torch.allclose(own[name].float(), value, rtol=torch.finfo(dtype).eps, atol=1e-6), name


def test_adapters_over_a_base_in_half_precision(folders, tmp_path):
    """With the embeddings that peft trains in single precision; nothing of the base is in the checkpoint."""
    root, tokenizer, other = folders
    base = hf.LlamaForCausalLM(text_config("Llama", vocab_size=ROWS)).half()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    training = trained_on(folders, base.float(), tmp_path, modules_to_save=["embed_tokens", "lm_head"])
    state = {n: v for n, v in training.state_dict().items() if "lora_" in n or "modules_to_save" in n}
    sounds = {**other.wave2vec2.state_dict(prefix="wave2vec2."), **other.projector.state_dict(prefix="projector.")}
    torch.save({**state, **{name: value.half() for name, value in sounds.items()}}, tmp_path / "b.pth")
    adapters = [tmp_path / "adapter"]
    convert(tmp_path / "base", root / "acoustic", tmp_path / "b.pth", tmp_path / "out", adapters=adapters)
    model = hf.AutoModelForMultimodalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    "trained", ["nothing", "nothing, saved once", "embed_tokens", "both", "both, older peft", "head apart"]
)
def test_a_base_with_one_matrix_for_embeddings_and_head(trained, folders, tmp_path, monkeypatch):
    root, tokenizer, other = folders
    if "older peft" in trained:
        as_today = peft.LoraModel.merge_and_unload

        def leaves_the_configuration(adapted):
            merged = as_today(adapted)
            merged.config.tie_word_embeddings = True
            return merged

        monkeypatch.setattr(peft.LoraModel, "merge_and_unload", leaves_the_configuration)
    base = randomise(hf.LlamaForCausalLM(text_config("Llama", vocab_size=ROWS, tie_word_embeddings=True)), 12)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    modules = {"embed_tokens": ["embed_tokens"], "both": ["embed_tokens", "lm_head"]}.get(trained.split(",")[0])
    if trained == "head apart":
        training = Training(randomise(hf.LlamaForCausalLM(text_config("Llama", vocab_size=ROWS)), 13), None, None)
    else:
        training = trained_on(folders, base, tmp_path, modules_to_save=modules)
        for name, weight in training.named_parameters():
            if "modules_to_save" in name:
                weight.data.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    training = Training(training.llama, other.wave2vec2, other.projector).eval()
    state = training.state_dict()
    torch.save(_without("lm_head")(state) if "saved once" in trained else state, tmp_path / "b.pth")
    adapters = [] if trained == "head apart" else [tmp_path / "adapter"]
    convert(tmp_path / "base", root / "acoustic", tmp_path / "b.pth", tmp_path / "out", adapters=adapters)
    expected, _ = training.logits(tokenizer, PROMPTS[:1], [sound(0.4)])
    assert largest_difference(logits_of(tmp_path / "out"), expected) < 1e-4
    saved = hf.AutoConfig.from_pretrained(tmp_path / "out").tie_word_embeddings
    assert saved == trained.startswith("nothing")


def test_a_projector_without_biases(folders, tmp_path):
    root, _, training = folders
    path = checkpoint(
        root, "unbiased.pth", lambda s: {n: v for n, v in s.items() if n[:9] != "projector" or n[-4:] != "bias"}
    )
    model = hf.AutoModelForMultimodalLM.from_pretrained(run(root, path, tmp_path / "out"))
    assert model.config.projector_bias is False
    assert list(model.model.projector.state_dict()) == ["proj1.weight", "norm.weight", "proj2.weight"]


def test_what_was_only_for_training_or_sampling_is_left(folders, tmp_path):
    """A mask vector that the acoustic model has no place for; and of the base's generation, where it ends."""
    root, _, _ = folders
    for part in ("base", "acoustic"):
        shutil.copytree(root / part, tmp_path / part)
    edit(tmp_path / "acoustic" / "config.json", mask_time_prob=0.0, mask_feature_prob=0.0)
    edit(tmp_path / "base" / "generation_config.json", eos_token_id=[3, 5], temperature=0.1, do_sample=False)
    adapters = [root / "text", root / "multimodal"]
    convert(tmp_path / "base", tmp_path / "acoustic", root / "best_model.pth", tmp_path / "out", adapters=adapters)
    model = hf.AutoModelForMultimodalLM.from_pretrained(tmp_path / "out")
    assert not hasattr(model.model.audio_tower, "masked_spec_embed")
    assert model.generation_config.eos_token_id == [3, 5] and model.generation_config.temperature in (None, 1.0)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_tokenizer_beside_the_last_adapter(folders, tmp_path):
    root, tokenizer, _ = folders
    adapter = _adapter(root, tmp_path / "adapter")
    other = build_tokenizer()
    other.add_tokens(["[laugh]"])
    other.save_pretrained(adapter)
    earlier = _adapter(root, tmp_path / "earlier")
    build_tokenizer().save_pretrained(earlier)
    path = checkpoint(root, "plain.pth", plain)
    processor = hf.AutoProcessor.from_pretrained(run(root, path, tmp_path / "out", adapters=[earlier, adapter]))
    assert len(processor.tokenizer) == len(tokenizer) + 1 and processor.tokenizer.padding_side == "left"


def test_refuses_an_audio_token_beyond_the_rows(folders, tmp_path):
    root, _, _ = folders
    adapter = _adapter(root, tmp_path / "adapter")
    other = build_tokenizer()
    other.add_tokens([f"[{index}]" for index in range(ROWS)])
    other.save_pretrained(adapter)
    path = checkpoint(root, "plain.pth", plain)
    with pytest.raises(lensplug.LensplugError, match=r"'<sound>' is token 1048 .* language model has 528"):
        run(root, path, tmp_path / "out", adapters=[adapter], audio_token="<sound>")


@pytest.mark.parametrize("part", ["base", "acoustic"])
def test_refuses_a_folder_that_lacks_what_the_checkpoint_does_not_have(part, folders, tmp_path):
    """transformers would draw it at random."""
    root, _, _ = folders
    for name in ("base", "acoustic"):
        shutil.copytree(root / name, tmp_path / name)
    weights = safetensors.torch.load_file(tmp_path / part / "model.safetensors")
    taken = next(name for name in weights if "layers.0" in name and name.endswith("k_proj.weight"))
    del weights[taken]
    safetensors.torch.save_file(weights, tmp_path / part / "model.safetensors", metadata={"format": "pt"})
    prefix = {"base": "llama.", "acoustic": "wave2vec2."}[part]
    path = checkpoint(root, "frozen.pth", lambda s: {n: v for n, v in plain(s).items() if not n.startswith(prefix)})
    with pytest.raises(lensplug.LensplugError, match=rf"{part}' lacks weights, .*{taken}"):
        convert(tmp_path / "base", tmp_path / "acoustic", path, tmp_path / "out", adapters=[root / "text"])
    (tmp_path / part / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(lensplug.LensplugError, match=rf"{part}' could not be loaded"):
        convert(tmp_path / "base", tmp_path / "acoustic", path, tmp_path / "out", adapters=[root / "text"])


def test_refuses_a_plain_language_model_without_an_adapter_that_is_given(folders, tmp_path):
    root, _, _ = folders

    def without_last(state):
        kept = {name: value for name, value in state.items() if "lora_" not in name}
        return renamed(".base_layer", "")(renamed("base_model.model.", "")(kept))

    path = checkpoint(root, "unmerged.pth", without_last)
    with pytest.raises(lensplug.LensplugError, match="does not have the adapter 'multimodal' merged"):
        run(root, path, tmp_path / "out")
    assert run(root, path, tmp_path / "text-only", adapters=[root / "text"]).is_dir()


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
    r"begin with none of .*: 7": lambda s: {**s, 7: torch.zeros(1)},
    r"have one place in the model: merge all adapters but the last": lambda s: {
        **s, **{n.replace(".default.", ".other."): v + 1 for n, v in s.items() if "lora_A" in n}
    },
    r"one part \(float16, float32\): give dtype": lambda s: {
        n: v.half() if "up_proj" in n else v for n, v in plain(s).items()
    },
    r"lacks weights of the language model: model.layers.1": lambda s: _without("layers.1")(plain(s)),
    r"weights that the language model has not: .*layers.9.* \(12 in all\)": lambda s: {
        **plain(s), **{f"llama.model.layers.9.w{i}": torch.zeros(1) for i in range(12)}
    },
    r"lacks weights of the language model: model.embed": lambda s: _without("embed_tokens")(plain(s)),
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
    deeper = _adapter(root, tmp_path / "deeper")
    weights = safetensors.torch.load_file(deeper / "adapter_model.safetensors")
    more = {
        name.replace("layers.2", "layers.7"): value.clone() for name, value in weights.items() if "layers.2" in name
    }
    safetensors.torch.save_file({**weights, **more}, deeper / "adapter_model.safetensors")
    with pytest.raises(lensplug.LensplugError, match="'deeper' is for another model.*layers.7"):
        run(root, path, tmp_path / "out", adapters=[deeper])
    ignored = _adapter(root, tmp_path / "ignored")
    more = {"base_model.model.model.layers.0.self_attn.q_proj.weight": torch.ones(32, 32)}
    safetensors.torch.save_file({**weights, **more}, ignored / "adapter_model.safetensors")
    with pytest.raises(lensplug.LensplugError, match="'ignored' is for another model.*q_proj.base_layer"):
        run(root, path, tmp_path / "out", adapters=[ignored])
    kind = _adapter(root, tmp_path / "kind", peft_type="PREFIX_TUNING")
    with pytest.raises(lensplug.LensplugError, match="'kind' is of the kind PREFIX_TUNING, expected LORA"):
        run(root, path, tmp_path / "out", adapters=[kind])
    assert not (tmp_path / "out").exists()


def test_refuses_an_adapter_that_is_broken(folders, tmp_path):
    root, _, _ = folders
    adapter = _adapter(root, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(lensplug.LensplugError, match="weights of the adapter 'adapter' cannot be read"):
        run(root, root / "best_model.pth", tmp_path / "out", adapters=[adapter])
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(lensplug.LensplugError, match="is no adapter: it has no adapter_model.safetensors"):
        run(root, root / "best_model.pth", tmp_path / "out", adapters=[adapter])
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(lensplug.LensplugError, match="cannot be read as an adapter's configuration"):
        run(root, root / "best_model.pth", tmp_path / "out", adapters=[adapter])
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_says_how_to_get_peft(folders, tmp_path, monkeypatch):
    root, _, _ = folders
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(lensplug.LensplugError, match="pip install peft"):
        run(root, root / "best_model.pth", tmp_path / "out")


def test_leaves_nothing_behind_where_writing_fails(folders, tmp_path, monkeypatch):
    root, _, _ = folders

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(AudioLlamaProcessor, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        run(root, root / "best_model.pth", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command(folders, tmp_path):
    root, _, _ = folders
    arguments = ["convert-audio-llama", "--base", root / "base", "--acoustic", root / "acoustic"]
    arguments += ["--adapter", root / "text", "--adapter", root / "multimodal"]
    arguments += ["--checkpoint", root / "best_model.pth", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "model.safetensors").exists()
    again = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert again.exit_code == 2 and "exists already: give a new folder" in again.stderr
    options = ["--dtype", "bfloat16", "--audio-token", "<sound>", "--vectors", "4"]
    arguments[-1] = tmp_path / "other"
    result = CliRunner().invoke(app, [str(argument) for argument in [*arguments, *options]])
    assert result.exit_code == 0, result.output
    config = hf.AutoConfig.from_pretrained(tmp_path / "other")
    assert (config.dtype, config.num_audio_vectors, config.audio_token_id) == (torch.bfloat16, 4, 520)
    wrong = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--dtype", "half precision"]])
    assert wrong.exit_code == 2 and "dtype is 'half precision', expected float32" in wrong.stderr
