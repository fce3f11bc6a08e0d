"""An audio-LLaMA as its training left it, made a folder that `from_pretrained` opens.

Such a training produces a `best_model.pth` in addition to its starting point: a LLaMA, an acoustic model, and LoRA
adapters, one from text-only training (merged when the multimodal training began) and one trained on the
multimodal task. `convert` puts them together, merges the adapters, and writes model and processor.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from lensplug.audio_llama.checkpoint import fill, listed, read_parts, rows_of
from lensplug.audio_llama.configuration import AudioLlamaConfig
from lensplug.audio_llama.lora import (
    PREFIX,
    TRAINED,
    adapter_weights,
    attach,
    refuse_other_base,
    refuse_unmerged,
    respelt,
)
from lensplug.audio_llama.modeling import AudioLlamaForConditionalGeneration
from lensplug.audio_llama.processing import AudioLlamaProcessor
from lensplug.errors import LensplugError, LensplugWarning
from lensplug.files.unfinished_folder import holds_files, leftovers, unfinished_folder
from lensplug.files.writable import folder_to_write
from lensplug.model_files import folder_checks
from lensplug.model_files.failures import failures_explained
from lensplug.model_files.model_class import refuse_other_size
from lensplug.model_files.remote_code import nobody_is_asked
from lensplug.provenance.public_names import public_name

MASK_VECTOR = ("masked_spec_embed",)
"""Parameters of the acoustic model that are used only to mask frames in training."""

Adapter = tuple[str | Path, Mapping[str, Tensor]]
"""A folder, and the tensors that it holds."""


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

    The weights are held once, in the dtype that they are written in, and beside them one matrix at a time and the
    adapters: a 7B model in half precision needs some 16 GB. The checkpoint is mapped, not read; its pages are
    counted with the process, but the system takes them back when it needs them. (Files in the format of torch
    before 1.6 cannot be mapped: they are held whole.)

    Args:
        base: The LLaMA that the training started from: a folder, or a name on the hub.
        acoustic: The acoustic model (wav2vec2, HuBERT, WavLM, Whisper): a folder, or a name on the hub.
        checkpoint: The `best_model.pth`. Its `llama.` keys may be those of the language model, all adapters
            merged; those of the model with its last adapter (peft); or what was trained alone, the adapter and
            perhaps the embeddings. Language model and acoustic model, where wholly absent, are taken from `base`
            with its `adapters`, and from `acoustic`.
        out: A folder that does not exist yet, or is empty.
        adapters: LoRA folders in the order of training. All are merged.
        audio_token: The placeholder in prompts; added to the tokenizer if it is not in it.
        num_audio_vectors: Vectors for each sound.
        dtype: dtype of all weights. By default that of the language model in the checkpoint, or of `base`.
        allow_other_base: Accept an adapter that names another base model, where the shapes fit.
        progress: Called with a few words before each step.

    Returns:
        The folder.

    Raises:
        LensplugError: If keys are left over or missing, shapes do not fit, an adapter is for another model, parts
            have different dtypes, or `out` is not empty.
    """
    out = folder_to_write(out)
    if out.exists() and holds_files(out):
        raise LensplugError(f"{str(out)!r} exists already: give a new folder.")
    for sentence in leftovers(out):
        warnings.warn(sentence, LensplugWarning, stacklevel=2)
    refuse_other_base(base, adapters, allowed=allow_other_base)
    progress("reading the checkpoint")
    parts = read_parts(checkpoint)
    tokenizer = _tokenizer([*reversed(adapters), base], audio_token)
    progress("putting the language model together")
    trained = [(folder, adapter_weights(folder)) for folder in adapters]
    language_model = _language_model(base, trained, parts["llama"], dtype)
    are_known = any(
        rows_of(tensors) is not None
        for tensors in (parts["llama"], *(adapter_tensors for _, adapter_tensors in trained))
    )
    _give_rows(language_model, tokenizer, audio_token, are_known=are_known)
    progress("putting the acoustic model together")
    tower = _acoustic_model(acoustic, parts["wave2vec2"], dtype)
    extractor = _open(AutoFeatureExtractor, acoustic)
    for part in (tower.config, language_model.config):  # both are written, with the folders that they came from
        part._name_or_path = public_name(part._name_or_path)
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
    with unfinished_folder(out) as folder:
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # what a full disk is to it
            raise LensplugError(f"{str(out)!r} cannot be written: {error}. Give another path.") from error
        processor.save_pretrained(folder)
    return out


def _language_model(
    base: str | Path, adapters: Sequence[Adapter], tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Any:
    """The base with all adapters merged, and with what the checkpoint says."""
    is_adapted = any("lora_" in name for name in tensors)
    if is_adapted and not adapters:
        raise LensplugError("the checkpoint has LoRA weights: give the folder of their adapter (adapters=[...]).")
    # What was trained is often in single precision over a half-precision model: it does not say the dtype.
    frozen = {name: value for name, value in tensors.items() if not TRAINED.search(name)}
    is_whole = any(".layers." in name for name in frozen)
    load_dtype = dtype or (_dtype(frozen) if is_whole else "auto")
    model = _open_whole(AutoModelForCausalLM, base, load_dtype, is_filled=is_whole)
    _untie(model, tensors)
    for folder, adapter_tensors in adapters:
        _resize(model, rows_of(adapter_tensors))
        if is_adapted and folder == adapters[-1][0]:
            _resize(model, rows_of(tensors))
            adapted = attach(model, folder, adapter_tensors)
            _fill_adapted(adapted, tensors, is_whole=is_whole)
            model = adapted.merge_and_unload()
        else:
            model = _merged(model, folder, adapter_tensors, tensors)
    if tensors and not is_adapted:
        _resize(model, rows_of(tensors))
        fill(model, tensors, "language model", may_lack=["lm_head.weight"] if model.config.tie_word_embeddings else [])
    head, embed = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    model.config.tie_word_embeddings &= torch.equal(head, embed)  # older peft leaves this to us
    return model


def _fill_adapted(adapted: Any, tensors: Mapping[str, Tensor], *, is_whole: bool) -> None:
    """All of the model and its adapter, or what was trained alone: then the rest is what it was before."""
    module_keys = list(adapted.state_dict())
    may_lack = [
        name for name in module_keys if not TRAINED.search(name) and (not is_whole or "original_module" in name)
    ]
    if adapted.config.tie_word_embeddings:
        may_lack += [name for name in module_keys if name.endswith("lm_head.weight")]
    fill(adapted, respelt(tensors, module_keys), "language model with its adapter", may_lack=may_lack)


def _merged(
    model: Any, folder: str | Path, adapter_tensors: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> Any:
    """An adapter merged as its folder has it; it must be in the checkpoint's language model too."""
    adapted = attach(model, folder, adapter_tensors)
    changed = next(
        (name for name in adapted.state_dict() if ".layers." in name and name.endswith("base_layer.weight")), ""
    )
    name = changed.removeprefix(PREFIX).replace(".base_layer", "")
    before = adapted.state_dict()[changed].clone() if name in tensors else None
    model = adapted.merge_and_unload()
    if before is not None:
        refuse_unmerged(folder, before, model.state_dict()[name], tensors[name])
    return model


def _acoustic_model(acoustic: str | Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Any:
    tower = _open_whole(AutoModel, acoustic, dtype or "auto", is_filled=bool(tensors))
    tower = tower.get_encoder() if tower.config.is_encoder_decoder else tower
    if tensors:
        tower = tower.to(dtype or _dtype(tensors))
        fill(tower, tensors, "acoustic model", may_lack=MASK_VECTOR, may_drop=MASK_VECTOR)
    return tower


def _untie(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Two matrices for embeddings and head, where the base has one and the checkpoint two that differ."""
    embed = next((value for name, value in tensors.items() if name.endswith("embed_tokens.weight")), None)
    head = next((value for name, value in tensors.items() if name.endswith("lm_head.weight")), None)
    if model.config.tie_word_embeddings and embed is not None and head is not None and not torch.equal(embed, head):
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


def _resize(model: Any, rows: int | None) -> None:
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _give_rows(model: Any, tokenizer: Any, audio_token: str, *, are_known: bool) -> None:
    """Rows for the audio token where the training left no embeddings.

    They are never read: its place is taken by the vectors of a sound. As the mean of all rows they do not
    become an answer either. The rows of other new tokens are unknown.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if are_known or len(tokenizer) <= rows:
        return
    unread = {audio_token, tokenizer.pad_token}
    added_tokens = [token for token, index in tokenizer.get_vocab().items() if index >= rows and token not in unread]
    if added_tokens:
        raise LensplugError(
            f"the tokenizer has tokens that no embeddings were found for: {listed(sorted(added_tokens))}. The base has"
            f" {rows}"
            " rows, and neither checkpoint nor adapters have embeddings: give a base with rows for them."
        )
    _resize(model, -(-len(tokenizer) // 8) * 8)
    with torch.no_grad():
        for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            matrix[rows:] = matrix[:rows].float().mean(dim=0).to(matrix.dtype)


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
    parts = {"language model": language_model, "acoustic model": tower, "projector": model.model.projector}
    dtypes = dict.fromkeys((name, parameter.dtype) for name, part in parts.items() for parameter in part.parameters())
    if len({dtype for _, dtype in dtypes}) > 1:
        listed_dtypes = ", ".join(f"{name} {str(parameter).removeprefix('torch.')}" for name, parameter in dtypes)
        raise LensplugError(f"the parts have different dtypes ({listed_dtypes}): give dtype= (--dtype), one for all.")
    model.config.dtype = model.lm_head.weight.dtype
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # where it stops; not how the base likes to sample
        setattr(model.generation_config, name, getattr(language_model.generation_config, name))
    return model.eval()


def _open(auto_class: Any, name: str | Path, **options: Any) -> Any:
    """What transformers loads; its files are looked at first, and code that comes with them is not run.

    What is written has classes of transformers and of lensplug alone, so that opening it needs no remote code.
    """
    path = str(name)
    with failures_explained(path, may_trust=False) as reading, nobody_is_asked():
        reading("its configuration")
        folder = folder_checks.local(path, {})
        has_weights = "output_loading_info" in options
        if folder is not None:
            folder_checks.refuse_broken(folder, path, may_have_adapter=not has_weights)
        if has_weights:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            folder_checks.fetch_weights(path, {}, {})
            reading("its weight files")
            weights = folder_checks.whole_weights(folder, {})
            reading("the model that its config.json describes")
            refuse_other_size(auto_class, config, weights, path)
            reading(", ".join(weights.names[:3]) if weights is not None else "its weight files")
        else:
            reading(f"the files that {auto_class.__name__} reads")
        return auto_class.from_pretrained(path, trust_remote_code=False, **options)


def _open_whole(auto_class: Any, name: str | Path, dtype: Any, *, is_filled: bool) -> Any:
    """A model of which every weight is in its folder, or is filled later; transformers draws what is missing."""
    model, loading_info = _open(auto_class, name, dtype=dtype, output_loading_info=True)
    missing = [key for key in loading_info["missing_keys"] if not key.endswith(MASK_VECTOR)]
    if missing and not is_filled:
        raise LensplugError(f"{str(name)!r} lacks weights, and the checkpoint has none of it: {listed(missing)}.")
    return model


def _tokenizer(folders: Sequence[str | Path], audio_token: str) -> Any:
    """That of the last adapter which has one (added tokens are there), else of the base."""
    with_one = [folder for folder in folders[:-1] if (Path(folder) / "tokenizer_config.json").is_file()]
    tokenizer = _open(AutoTokenizer, with_one[0] if with_one else folders[-1])
    if tokenizer.convert_tokens_to_ids(audio_token) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([audio_token], special_tokens=True)
    if tokenizer.pad_token is None:  # LLaMA has none; padding is never attended to
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _token_id(tokenizer: Any, audio_token: str, language_model: Any) -> int:
    token, rows = int(tokenizer.convert_tokens_to_ids(audio_token)), language_model.lm_head.weight.shape[0]
    if token >= rows:
        raise LensplugError(
            f"{audio_token!r} is token {token} of the tokenizer, and the language model has {rows}: is this the"
            " tokenizer of the training? (One in the folder of the last adapter takes precedence over that of the"
            " base.)"
        )
    return token


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    dtypes = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise LensplugError(f"the checkpoint mixes dtypes in one part ({names}): give dtype= (--dtype).")
    return dtypes.pop()
