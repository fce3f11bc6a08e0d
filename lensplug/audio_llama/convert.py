"""An audio-LLaMA as its training left it, made a folder that `from_pretrained` opens.

Such a training leaves a `best_model.pth` beside what it started from: a LLaMA, an acoustic model, and LoRA
adapters, one from text-only training (merged when the multimodal training began) and one trained on the
multimodal task. `convert` puts them together, merges the adapters, and writes model and processor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from lensplug.audio_llama.checkpoint import fill, read_parts
from lensplug.audio_llama.configuration import AudioLlamaConfig
from lensplug.audio_llama.lora import attach, refuse_other_base
from lensplug.audio_llama.modeling import AudioLlamaForConditionalGeneration
from lensplug.audio_llama.processing import AudioLlamaProcessor
from lensplug.errors import LensplugError

EMBEDDING_KEYS = ("embed_tokens.weight", "embed_tokens.modules_to_save.default.weight")
MAY_LACK = ("masked_spec_embed",)
"""Only used to hide frames in training."""


def convert(
    base: str | Path,
    acoustic: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    adapters: Sequence[str | Path] = (),
    audio_token: str = "<audio>",
    num_audio_vectors: int = 10,
    dtype: torch.dtype | None = None,
    allow_other_base: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Path:
    """Write the folder `out`; nothing is written before everything has found its place.

    Takes as much memory as the model has weights (and, for what is being filled, the mapped file).

    Args:
        base: The LLaMA that the training started from: a folder, or a name on the hub.
        acoustic: The acoustic model (wav2vec2, HuBERT, WavLM, Whisper), likewise.
        checkpoint: The `best_model.pth`. Its `llama.` keys may be those of the language model, those of the
            model with its last adapter (peft), or the trained adapter weights alone; a part that is wholly absent
            is taken from `base` and `acoustic`.
        out: A folder that does not exist yet, or is empty.
        adapters: LoRA folders in the order of training. All are merged.
        audio_token: The placeholder in prompts; added to the tokenizer if it is not in it.
        num_audio_vectors: Vectors for each sound.
        dtype: Of all weights. By default that of the language model in the checkpoint, or of `base`.
        allow_other_base: Accept an adapter that names another base model, where the shapes fit.
        progress: Called with a few words before each step.

    Returns:
        The folder.

    Raises:
        LensplugError: If keys are left over or missing, shapes do not fit, an adapter is for another model, parts
            have different dtypes, or `out` is not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LensplugError(f"{str(out)!r} exists already: give a new folder.")
    refuse_other_base(base, adapters, allowed=allow_other_base)
    progress("reading the checkpoint")
    parts = read_parts(checkpoint)
    tokenizer = _tokenizer([*reversed(adapters), base], audio_token)
    progress("putting the language model together")
    language_model = _language_model(base, adapters, parts["llama"], len(tokenizer), dtype)
    progress("putting the acoustic model together")
    tower = _open(AutoModel, acoustic, "auto" if dtype is None else dtype)
    tower = tower.get_encoder() if tower.config.is_encoder_decoder else tower
    if parts["wave2vec2"]:
        tower = tower.to(dtype or _dtype(parts["wave2vec2"]))
        fill(tower, parts["wave2vec2"], "acoustic model", may_lack=MAY_LACK)
    extractor = _open(AutoFeatureExtractor, acoustic)
    config = AudioLlamaConfig(
        tower.config,
        language_model.config,
        audio_token_id=_token_id(tokenizer, audio_token, language_model),
        num_audio_vectors=num_audio_vectors,
        sampling_rate=extractor.sampling_rate,
        projector_bias="proj1.bias" in parts["projector"],
        architectures=["AudioLlamaForConditionalGeneration"],
    )
    model = _assembled(config, tower, language_model, parts["projector"], dtype)
    processor = AudioLlamaProcessor.of(
        config, extractor, tokenizer, audio_token=audio_token, chat_template=tokenizer.chat_template
    )
    progress("writing")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        model.save_pretrained(Path(folder) / "whole")
        processor.save_pretrained(Path(folder) / "whole")
        (Path(folder) / "whole").rename(out)
    return out


def _language_model(
    base: str | Path,
    adapters: Sequence[str | Path],
    tensors: Mapping[str, Tensor],
    n_tokens: int,
    dtype: torch.dtype | None,
) -> Any:
    """The base with all adapters merged, and with what the checkpoint says."""
    # Adapter weights are often in single precision over a half-precision model: they do not say the dtype.
    whole = {name: value for name, value in tensors.items() if not _is_trained_adapter(name)}
    model = _open(AutoModelForCausalLM, base, dtype or (_dtype(whole) if whole else "auto"))
    rows = next((len(tensors[name]) for name in tensors if name.endswith(EMBEDDING_KEYS)), None)
    if rows is None and n_tokens > model.get_input_embeddings().weight.shape[0]:
        rows = -(-n_tokens // 8) * 8
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    is_adapted = any("lora_" in name for name in tensors)
    if is_adapted and not adapters:
        raise LensplugError("the checkpoint has LoRA weights: give the folder of their adapter (adapters=[...]).")
    for folder in adapters:
        adapted = attach(model, folder)
        if is_adapted and folder == adapters[-1]:
            # All of the model, or the adapter alone: then the rest is what it was before the training.
            base_names = [name for name in adapted.state_dict() if not _is_trained_adapter(name)]
            fill(adapted, tensors, "language model with its adapter", may_lack=() if whole else base_names)
        model = adapted.merge_and_unload()
    if tensors and not is_adapted:
        tied = ["lm_head.weight"] if model.config.tie_word_embeddings else []
        fill(model, tensors, "language model", may_lack=tied)
    return model


def _is_trained_adapter(name: str) -> bool:
    """Whether peft would save this weight with the adapter."""
    return "lora_" in name or "modules_to_save" in name


def _assembled(
    config: AudioLlamaConfig,
    tower: Any,
    language_model: Any,
    projector: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> AudioLlamaForConditionalGeneration:
    with torch.device("meta"):
        model = AudioLlamaForConditionalGeneration(config)
    model.model.audio_tower = tower
    model.model.language_model = language_model.model
    model.lm_head = language_model.lm_head
    model.model.projector.to_empty(device="cpu")
    model.model.projector.to(dtype or (_dtype(projector) if projector else language_model.dtype))
    fill(model.model.projector, projector, "projector")
    dtypes = {
        "language model": model.lm_head.weight.dtype,
        "acoustic model": tower.dtype,
        "projector": model.model.projector.proj1.weight.dtype,
    }
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {str(one).removeprefix('torch.')}" for name, one in dtypes.items())
        raise LensplugError(f"the parts have different dtypes ({found}): give dtype= (--dtype), one for all.")
    model.config.dtype = model.lm_head.weight.dtype
    return model.eval()


def _open(auto_class: Any, name: str | Path, dtype: Any = None) -> Any:
    try:
        return auto_class.from_pretrained(name, **({} if dtype is None else {"dtype": dtype}))
    except (OSError, ValueError, KeyError) as error:
        raise LensplugError(f"{str(name)!r} could not be loaded: {error}") from error


def _tokenizer(folders: Sequence[str | Path], audio_token: str) -> Any:
    """That of the last adapter which has one (added tokens are there), else of the base."""
    with_one = [folder for folder in folders[:-1] if (Path(folder) / "tokenizer_config.json").is_file()]
    tokenizer = _open(AutoTokenizer, with_one[0] if with_one else folders[-1])
    if tokenizer.convert_tokens_to_ids(audio_token) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([audio_token], special_tokens=True)
    if tokenizer.pad_token is None:  # LLaMA has none; what stands at padding is never attended
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _token_id(tokenizer: Any, audio_token: str, language_model: Any) -> int:
    token, rows = int(tokenizer.convert_tokens_to_ids(audio_token)), language_model.lm_head.weight.shape[0]
    if token >= rows:
        raise LensplugError(
            f"{audio_token!r} is token {token} of the tokenizer, and the language model has {rows}: is this the"
            " tokenizer of the training? (One beside the last adapter is taken before that of the base.)"
        )
    return token


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    found = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if len(found) > 1:
        names = ", ".join(sorted(str(one).removeprefix("torch.") for one in found))
        raise LensplugError(f"the checkpoint mixes dtypes in one part ({names}): give dtype= (--dtype).")
    return found.pop()
