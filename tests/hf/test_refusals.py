"""What has no language core is refused by its true reason, with what to use instead; a core one level down is found.

The models are those of transformers itself, small and without memory: their kind decides, not their weights.
"""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from support.families.listed import families
from support.families.small import small_config
from transformers.models.auto import modeling_auto

import lensplug
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.refusals import decoder_and_head

ENCODER_DECODERS = ("whisper", "pix2struct", "vision-encoder-decoder", "seamless_m4t", "t5gemma2", "udop")
CROSS_ATTENTION = {
    "mllama": "in layers 3", "idefics": "in its gated_cross_attn_layers", "blip": "in layers 0, 1, 2, 3",
    "evolla": "in layers 1, 3",
}  # fmt: skip
SOUND = ("bark", "csm", "dia", "musicgen", "vits", "higgs_audio_v2")
ONE_LEVEL_DOWN = {
    "llama4": "Llama4TextModel", "blip-2": "OPTDecoder", "kosmos-2": "Kosmos2TextTransformer",
    "llava": "LlamaModel",
}  # fmt: skip


def family(name: str) -> hf.PreTrainedModel:
    with torch.device("meta"):
        return getattr(hf, families()[name])(small_config(name))


def refusal_of(model: object) -> str:
    with pytest.raises(lensplug.LensplugError) as refusal:
        lensplug.wrap(model)
    return str(refusal.value)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders(name):
    message = refusal_of(family(name))
    assert "is an encoder-decoder" in message and "cache_from_attentions(outputs.encoder_attentions)" in message


@pytest.mark.parametrize("name", CROSS_ATTENTION)
def test_media_that_enter_by_cross_attention(name):
    message = refusal_of(family(name))
    assert "by cross-attention" in message and f"({CROSS_ATTENTION[name]}), beside the words" in message


@pytest.mark.parametrize("name", SOUND)
def test_models_that_make_sound(name):
    assert "makes sound" in refusal_of(family(name))


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_of_several_models_the_one_that_writes_words_is_named(name):
    model = family(name)
    assert "lensplug.wrap(model.thinker, processor)" in refusal_of(model)
    decoder, head = decoder_and_head(model.thinker)
    assert decoder is model.thinker.get_decoder() and head is model.thinker.lm_head


def test_what_pools_contrasts_or_acts():
    with torch.device("meta"):
        models = [hf.CLIPModel(hf.CLIPConfig()), hf.ViTModel(hf.ViTConfig()), hf.SiglipModel(hf.SiglipConfig())]
    for model in (*models, family("pi0")):
        message = refusal_of(model)
        assert "does not generate text" in message and "cache_from_attentions(outputs.attentions)" in message


def test_a_base_model_is_told_its_whole():
    model = family("llava").model
    assert "give the whole model, LlavaForConditionalGeneration.from_pretrained(name)" in refusal_of(model)


def test_a_decoder_of_another_form_is_described():
    message = refusal_of(family("git"))
    assert "get_decoder() gave a GitModel of embeddings, image_encoder, encoder" in message
    message = refusal_of(family("nemotron_h_omni"))
    assert "a NemotronHModel, has no embed_tokens" in message and "embeddings, layers, norm_f" in message


def test_embeddings_that_are_no_table_of_words():
    message = refusal_of(family("kyutai_speech_to_text"))
    assert "embeds its positions by a KyutaiSpeechToTextEmbeddings" in message and "codes of sound" in message


@pytest.mark.parametrize("name", ONE_LEVEL_DOWN)
def test_the_decoder_may_be_within_what_get_decoder_gives(name):
    decoder, head = decoder_and_head(family(name))
    assert type(decoder).__name__ == ONE_LEVEL_DOWN[name] and type(head) is torch.nn.Linear
    assert head.in_features == decoder.embed_tokens.weight.shape[1]


def test_layers_of_an_encoder_inside_the_decoder_are_no_reason():
    """Phi-4-multimodal keeps its towers in its decoder, with a pooling head of PyTorch's own attention."""
    model = family("phi4_multimodal").to_empty(device="cpu")
    kinds = {type(module).__name__ for module in model.get_decoder().modules()}
    assert "NonDynamicallyQuantizableLinear" in kinds, "what had been taken for quantisation"
    assert LanguageCore.of(model).decoder is model.model


def test_no_family_that_answers_in_words_is_taken_for_one_of_sound():
    """The map of what makes sound lists VibeVoice too, which has a language core."""
    listed = set(modeling_auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES)
    assert {"vibevoice", "bark"} <= listed
    assert type(decoder_and_head(family("vibevoice"))[0]).__name__ == "Qwen2Model"


def test_a_model_that_refines_a_canvas_is_told_so():
    with torch.device("meta"):
        model = getattr(hf, families()["diffusion_gemma"])(small_config("diffusion_gemma"))
    with pytest.raises(lensplug.LensplugError, match="DiffusionGemma.* by diffusion: an encoder reads the prompt"):
        decoder_and_head(model)
