"""A converted checkpoint of an audio-LLaMA training against its modules put together by hand."""

from __future__ import annotations

import copy
import json
import shutil
import warnings

import peft
import pytest
import torch
import transformers as hf
from support.audio_llamas import sound
from support.models import largest_difference, randomise, text_config
from support.tolerances import rounding
from support.trainings import PROMPTS, ROWS, Training, adapter_of, checkpoint, lora, mixed, plain, renamed, run, without
from typer.testing import CliRunner

import lensplug
from lensplug.app.cli import app
from lensplug.audio_llama.convert import convert
from lensplug.tiny.sound_model import build_tokenizer


def other_spelling(state):
    new = "conv.parametrizations.weight.original"
    return {
        name.replace(new + "0", "conv.weight_g").replace(new + "1", "conv.weight_v"): v for name, v in state.items()
    }


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
    # Merged and not, products of some 100 terms through the layers: each rounds by its own order.
    assert largest_difference(logits_of(tmp_path / "out"), expected) < rounding(torch.float32, 300, expected)


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
    torch.save(without("lm_head")(state) if "saved once" in trained else state, tmp_path / "b.pth")
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
    adapter = adapter_of(root, tmp_path / "adapter")
    other = build_tokenizer()
    other.add_tokens(["[laugh]"])
    other.save_pretrained(adapter)
    earlier = adapter_of(root, tmp_path / "earlier")
    build_tokenizer().save_pretrained(earlier)
    path = checkpoint(root, "plain.pth", plain)
    processor = hf.AutoProcessor.from_pretrained(run(root, path, tmp_path / "out", adapters=[earlier, adapter]))
    assert len(processor.tokenizer) == len(tokenizer) + 1 and processor.tokenizer.padding_side == "left"


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


def test_given_dtype_settlesmixed_parts(folders, tmp_path):
    root, _, _ = folders
    path = checkpoint(root, "mixed.pth", mixed)
    model = hf.AutoModelForMultimodalLM.from_pretrained(run(root, path, tmp_path / "out", dtype=torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_command(folders, tmp_path):
    root, _, _ = folders
    arguments = ["convert-audio-llama", "--base", root / "base", "--acoustic", root / "acoustic"]
    arguments += ["--adapter", root / "text", "--adapter", root / "multimodal"]
    arguments += ["--checkpoint", root / "best_model.pth", "--out", tmp_path / "out"]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", FutureWarning)
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert not [str(one.message) for one in warned if one.category is FutureWarning]  # of peft, for its authors
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


def test_the_folder_does_not_say_where_its_parts_lay(folders, tmp_path):
    root, *_ = folders
    out = run(root, checkpoint(root, "silent.pth", plain), tmp_path / "out")
    for file in out.rglob("*"):
        if file.is_file():
            assert str(root).encode() not in file.read_bytes(), file.name
            assert str(tmp_path).encode() not in file.read_bytes(), file.name
