"""Checkpoints, adapters and folders that cannot be converted: refused by name, nothing half written."""

from __future__ import annotations

import shutil
import sys

import pytest
import safetensors.torch
import torch
from support.trainings import ROWS, adapter_of, checkpoint, mixed, plain, renamed, run, without

import lensplug
from lensplug.audio_llama import AudioLlamaProcessor
from lensplug.audio_llama.convert import convert
from lensplug.tiny.sound_model import build_tokenizer


def test_refuses_an_audio_token_beyond_the_rows(folders, tmp_path):
    root, _, _ = folders
    adapter = adapter_of(root, tmp_path / "adapter")
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
    with pytest.raises(lensplug.LensplugError, match=rf"{part}/model.safetensors' has 6 bytes"):
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


def wrong_shape(state):
    return {**state, "projector.proj2.weight": torch.zeros(48, 32)}


REFUSED = {
    r"begin with none of .*: optimizer.step": lambda s: {**s, "optimizer.step": torch.zeros(1)},
    r"weights that the language model with its adapter has not: .*layers.9": lambda s: {
        **s, "llama.base_model.model.model.layers.9.mlp.up_proj.weight": torch.zeros(1)
    },
    "lacks weights of the projector: proj1.weight": without("proj1.weight"),
    r"lacks weights of the projector: .*proj2.weight": without("projector"),
    r"lacks weights of the acoustic model: encoder.layers.0": without("wave2vec2.encoder.layers.0"),
    r"lacks weights of the language model with its adapter: .*lora_A": without("layers.1.self_attn.v_proj.lora_A"),
    r"proj2.weight of the projector is \[48, 32\] in the checkpoint, and \[32, 32\]": wrong_shape,
    r"different dtypes \(language model float32, acoustic model float32, projector float16\): give dtype": mixed,
    r"begin with none of .*: 7": lambda s: {**s, 7: torch.zeros(1)},
    r"have one place in the model: merge all adapters but the last": lambda s: {
        **s, **{n.replace(".default.", ".other."): v + 1 for n, v in s.items() if "lora_A" in n}
    },
    r"one part \(float16, float32\): give dtype": lambda s: {
        n: v.half() if "up_proj" in n else v for n, v in plain(s).items()
    },
    r"lacks weights of the language model: model.layers.1": lambda s: without("layers.1")(plain(s)),
    r"weights that the language model has not: .*layers.9.* \(12 in all\)": lambda s: {
        **plain(s), **{f"llama.model.layers.9.w{i}": torch.zeros(1) for i in range(12)}
    },
    r"lacks weights of the language model: model.embed": lambda s: without("embed_tokens")(plain(s)),
    r"is no state dict \(it holds \['model', 'epoch'\]\)": lambda s: {"model": s, "epoch": 3},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refuses_and_writes_nothing(message, folders, tmp_path):
    root, _, _ = folders
    path = checkpoint(root, "wrong.pth", REFUSED[message])
    with pytest.raises(lensplug.LensplugError, match=message):
        run(root, path, tmp_path / "out")
    assert not list(tmp_path.iterdir())


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


def test_refuses_an_adapter_for_another_base_model(folders, tmp_path):
    root, _, _ = folders
    path = checkpoint(root, "plain.pth", plain)
    named = adapter_of(root, tmp_path / "named", base_model_name_or_path="meta-llama/Llama-2-7b-hf")
    with pytest.raises(
        lensplug.LensplugError, match="'named' is for 'meta-llama/Llama-2-7b-hf', and the base is 'base'"
    ):
        run(root, path, tmp_path / "out", adapters=[named])
    assert run(root, path, tmp_path / "allowed", adapters=[named], allow_other_base=True).is_dir()
    shaped = adapter_of(root, tmp_path / "shaped", r=8)
    with pytest.raises(lensplug.LensplugError, match="'shaped' does not fit the model.*size mismatch"):
        run(root, path, tmp_path / "out", adapters=[shaped])
    targets = adapter_of(root, tmp_path / "targets", target_modules=["q_proj"])
    with pytest.raises(lensplug.LensplugError, match="'targets' is for another model.*v_proj"):
        run(root, path, tmp_path / "out", adapters=[targets])
    foreign = adapter_of(root, tmp_path / "foreign", target_modules=["query_key_value"])
    with pytest.raises(lensplug.LensplugError, match="'foreign' does not fit the model.*query_key_value"):
        run(root, path, tmp_path / "out", adapters=[foreign])
    deeper = adapter_of(root, tmp_path / "deeper")
    weights = safetensors.torch.load_file(deeper / "adapter_model.safetensors")
    more = {
        name.replace("layers.2", "layers.7"): value.clone() for name, value in weights.items() if "layers.2" in name
    }
    safetensors.torch.save_file({**weights, **more}, deeper / "adapter_model.safetensors")
    with pytest.raises(lensplug.LensplugError, match="'deeper' is for another model.*layers.7"):
        run(root, path, tmp_path / "out", adapters=[deeper])
    ignored = adapter_of(root, tmp_path / "ignored")
    more = {"base_model.model.model.layers.0.self_attn.q_proj.weight": torch.ones(32, 32)}
    safetensors.torch.save_file({**weights, **more}, ignored / "adapter_model.safetensors")
    with pytest.raises(lensplug.LensplugError, match="'ignored' is for another model.*q_proj.base_layer"):
        run(root, path, tmp_path / "out", adapters=[ignored])
    kind = adapter_of(root, tmp_path / "kind", peft_type="PREFIX_TUNING")
    with pytest.raises(lensplug.LensplugError, match="'kind' is of the kind PREFIX_TUNING, expected LORA"):
        run(root, path, tmp_path / "out", adapters=[kind])
    assert not (tmp_path / "out").exists()


def test_refuses_an_adapter_that_is_broken(folders, tmp_path):
    root, _, _ = folders
    adapter = adapter_of(root, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(lensplug.LensplugError, match="adapter_model.safetensors' has 6 bytes"):
        run(root, root / "best_model.pth", tmp_path / "out", adapters=[adapter])
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(lensplug.LensplugError, match="is no adapter: it has no adapter_model.safetensors"):
        run(root, root / "best_model.pth", tmp_path / "out", adapters=[adapter])
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(lensplug.LensplugError, match="adapter_config.json' is no JSON"):
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
