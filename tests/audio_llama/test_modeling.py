"""audio-LLaMA as a Hugging Face model: what it computes, put together by hand; padding; saving; generation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers as hf
from support.audio_llamas import ENCODERS, audio_llama, manual_vectors, processed, sound, sounds
from support.models import largest_difference, reference_logits, text_config, wrapped_logits
from support.tolerances import rounding

import lensplug
from lensplug.audio_llama import AudioLlamaConfig, AudioLlamaForConditionalGeneration, AudioLlamaModel
from lensplug.audio_llama.modeling import interpolated

PROMPTS = ["<audio> How does the speaker sound?", "What do the words say? <audio> today", "we won <audio><audio> game"]


def given(batch):
    """The sounds among what the processor returns, and their mask."""
    return batch.get("input_values", batch.get("input_features")), batch["audio_attention_mask"]


def by_hand(model, input_ids, waveform, extractor):
    """Embeddings of one prompt with one sound: encoder, interpolation, projector and merge, each written out."""
    features = extractor(waveform, sampling_rate=16000, return_tensors="pt", padding=False)
    frames = model.model.audio_tower(features["input_values"]).last_hidden_state[0]
    vectors = manual_vectors(frames, 10)
    projector = model.model.projector
    hidden = torch.nn.functional.silu(vectors @ projector.proj1.weight.T + projector.proj1.bias)
    hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6) * projector.norm.weight
    merged = hidden @ projector.proj2.weight.T + projector.proj2.bias
    embeds = model.get_input_embeddings()(input_ids)[0]
    at = (input_ids[0] == model.config.audio_token_id).nonzero()[:, 0]
    return torch.cat([embeds[: at[0]], merged, embeds[at[-1] + 1 :]])[None]


@torch.no_grad()
def test_the_parts_put_together_by_hand():
    model, processor = audio_llama("wav2vec2")
    waveform = sound(0.7)
    batch = processed(processor, PROMPTS[:1], [waveform])
    embeds = by_hand(model, batch["input_ids"], waveform, processor.feature_extractor)
    language_model = hf.LlamaForCausalLM(model.config.text_config).eval()
    language_model.model = model.model.language_model
    language_model.lm_head = model.lm_head
    assert largest_difference(model(**batch).logits, language_model(inputs_embeds=embeds).logits) < 1e-4


@pytest.mark.parametrize(("n_frames", "count"), [(1, 1), (1, 10), (7, 1), (7, 10), (49, 10), (50, 10), (10, 10)])
def test_interpolation_is_torchs(n_frames, count):
    frames = torch.randn(2, 60, 5, dtype=torch.float64)  # in float32 torch rounds the places between frames
    lengths, counts = torch.tensor([n_frames, 60]), torch.tensor([count, 10])
    vectors = interpolated(frames, lengths, counts)
    expected = torch.cat([manual_vectors(frames[0, :n_frames], count), manual_vectors(frames[1], 10)])
    assert torch.allclose(vectors, expected, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_sound_of_a_batch_gets_the_vectors_that_it_gets_alone(encoder):
    model, processor = audio_llama(encoder)
    waveforms = sounds(0.31, 1.1, 0.72, 0.31)
    batch = processed(processor, ["<audio>"] * 4, waveforms)
    together = model.get_audio_features(*given(batch)).unflatten(0, (4, 10))
    for waveform, vectors in zip(waveforms, together, strict=True):
        own = processed(processor, ["<audio>"], [waveform])
        alone = model.get_audio_features(*given(own))
        assert largest_difference(alone, vectors) < 1e-5 * max(1.0, float(alone.abs().max()))
    assert largest_difference(together[0], together[2]) > 0.1, "the sound must matter"


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["wav2vec2", "wav2vec2-base", "hubert", "wavlm"])
def test_an_encoder_alone_gives_the_same_frames(encoder):
    """Against the encoder called by hand on one unpadded sound, without our masks."""
    model, processor = audio_llama(encoder)
    waveforms = sounds(0.5, 0.9)
    batch = processed(processor, ["<audio>"] * 2, waveforms)
    frames, lengths = model.model.get_audio_frames(batch["input_values"], batch["audio_attention_mask"])
    for waveform, own, length in zip(waveforms, frames, lengths, strict=True):
        normed = torch.from_numpy((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7))[None]
        alone = model.model.audio_tower(normed).last_hidden_state[0]
        assert len(alone) == int(length)
        assert largest_difference(own[:length], alone) < 1e-4


@pytest.mark.parametrize("encoder", ENCODERS)
def test_wrapped_core_gives_the_logits_of_the_full_model(encoder):
    """Sounds of unequal length in a left-padded batch, one prompt with two, one with none."""
    model, processor = audio_llama(encoder)
    batch = processed(processor, [*PROMPTS, "no sound at all"], sounds(0.3, 0.8, 0.5, 0.41))
    assert int(batch["attention_mask"][:, 0].min()) == 0, "the batch is padded"
    reference = reference_logits(model, batch)
    inputs = lensplug.wrap(model, processor).encode(batch)
    assert largest_difference(wrapped_logits(lensplug.wrap(model), inputs), reference, batch["attention_mask"]) < 1e-4
    assert inputs.modality.mask("audio").sum(dim=1).tolist() == [10, 10, 20, 0]
    assert [span.media_index for span in inputs.modality.spans if span.example == 2 and span.modality == "audio"] == [
        0,
        1,
    ]


@pytest.mark.parametrize("text", ["Llama", "Qwen2", "Mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_core_of_the_family_and_dtype(text, dtype):
    model, processor = audio_llama("wav2vec2", text)
    lens = lensplug.wrap(model.to(dtype), processor)
    report = lens.check(lens.prepare("How does the speaker sound?", audio=[(sound(0.4), 16000)]))
    assert report.agrees and report.not_finite == 0


@pytest.mark.parametrize("encoder", ["wav2vec2", "whisper"])
def test_a_stride_gives_longer_sounds_more_vectors(encoder):
    model, processor = audio_llama(encoder, frames_per_vector=4)
    waveforms = sounds(0.31, 0.9)
    batch = processed(processor, PROMPTS[:2], waveforms)
    frames, lengths = model.model.get_audio_frames(*given(batch))
    expected = [-(-int(length) // 4) for length in lengths]
    assert (batch["input_ids"] == model.config.audio_token_id).sum(dim=1).tolist() == expected
    assert expected[0] < expected[1]
    features = model.get_audio_features(*given(batch))
    manual = [manual_vectors(own[:n], k) for own, n, k in zip(frames, lengths, expected, strict=True)]
    assert largest_difference(features, model.model.projector(torch.cat(manual))) < 1e-4
    reference = reference_logits(model, batch)
    lens = lensplug.wrap(model, processor)
    assert largest_difference(wrapped_logits(lens, lens.encode(batch)), reference, batch["attention_mask"]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["wav2vec2", "wav2vec2-base", "whisper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vectors", [{"num_audio_vectors": 7}, {"frames_per_vector": 3}])
def test_saved_and_loaded_again(encoder, dtype, vectors, tmp_path):
    model, processor = audio_llama(encoder, **vectors)
    model = model.to(dtype)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    again = hf.AutoModelForMultimodalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert type(again) is AudioLlamaForConditionalGeneration and again.dtype == dtype
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    batch = processed(processor, PROMPTS[:2], sounds(0.3, 0.5))
    its_processor = hf.AutoProcessor.from_pretrained(tmp_path)
    outputs = processed(its_processor, PROMPTS[:2], sounds(0.3, 0.5))
    assert all(torch.equal(outputs[name], value) for name, value in batch.items())
    logits = again(**batch).logits
    if dtype == torch.float32:  # below, .to() rounds the rotary frequencies of the first model too
        own = model(**batch).logits  # weights that lie elsewhere in memory: kernels may begin at another of them
        terms = model.config.text_config.hidden_size * model.config.text_config.num_hidden_layers
        torch.testing.assert_close(logits, own, atol=rounding(dtype, terms, own), rtol=0)
    assert its_processor.chat_template == processor.chat_template
    base = hf.AutoModel.from_pretrained(tmp_path, dtype="auto").eval()
    assert type(base) is AudioLlamaModel
    assert torch.equal(again.lm_head(base(**batch).last_hidden_state), logits)


@torch.no_grad()
def test_generation_is_that_of_the_wrapped_core():
    model, processor = audio_llama("wav2vec2")
    lens = lensplug.wrap(model, processor)
    inputs = lens.prepare(
        ["How does the speaker sound?", "When?"], audio=[[(sound(0.5), 16000)], [(sound(0.3), 16000)]]
    )
    written = model.generate(**inputs.model_inputs, max_new_tokens=6, do_sample=False)
    answer = lens.generate(inputs, max_new_tokens=6)
    assert torch.equal(written[:, inputs.tokens.shape[1] :], answer.tokens)
    without_cache = model.generate(**inputs.model_inputs, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(written, without_cache)


def test_gradients_reach_every_part():
    model, processor = audio_llama("wav2vec2")
    batch = processed(processor, PROMPTS[:2], sounds(0.3, 0.5))
    loss = model.train()(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert missing in ([], ["model.audio_tower.masked_spec_embed"])
    model.gradient_checkpointing_enable()
    again = copy.deepcopy(model)
    again.zero_grad()
    again(**batch, labels=batch["input_ids"]).loss.backward()
    assert again.model.projector.proj1.weight.grad is not None


@torch.no_grad()
def test_attention_implementation_reaches_encoder_and_core():
    model, processor = audio_llama("wav2vec2")
    batch = processed(processor, PROMPTS[:2], sounds(0.3, 0.5))
    before = model(**batch).logits
    model.set_attn_implementation("eager")
    assert model.model.language_model.config._attn_implementation == "eager"
    assert model.model.audio_tower.config._attn_implementation == "eager"
    assert largest_difference(model(**batch).logits, before, batch["attention_mask"]) < 1e-4


@torch.no_grad()
def test_logits_to_keep_and_tied_embeddings():
    model, processor = audio_llama("wav2vec2")
    batch = processed(processor, PROMPTS[:1], sounds(0.3))
    whole = model(**batch).logits
    assert torch.allclose(model(**batch, logits_to_keep=2).logits, whole[:, -2:], atol=1e-5)
    text = text_config("Llama", tie_word_embeddings=True)
    tied = AudioLlamaForConditionalGeneration(AudioLlamaConfig(ENCODERS["wav2vec2"](), text, audio_token_id=300))
    assert tied.lm_head.weight is tied.model.language_model.embed_tokens.weight
    assert model.lm_head.weight is not model.model.language_model.embed_tokens.weight


def _both(model, batch):
    model(**batch, inputs_embeds=torch.zeros(1, 3, 32))


def _fewer_tokens(model, batch):
    model(**{**batch, "input_ids": batch["input_ids"][:, :5], "attention_mask": batch["attention_mask"][:, :5]})


def _mel(model, batch):
    model(input_ids=batch["input_ids"], input_features=torch.zeros(1, 80, 3000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_both, "input_ids or inputs_embeds, one of them"),
        (_fewer_tokens, r"prompt has \d audio token\(s\) and the sounds have 10 vectors"),
        (_mel, "wav2vec2 takes input_values"),
        (lambda *_: AudioLlamaConfig(num_audio_vectors=4, frames_per_vector=4), "both given"),
        (lambda *_: AudioLlamaConfig(num_audio_vectors=0), "num_audio_vectors is 0"),
        (lambda *_: AudioLlamaConfig({"model_type": "bert"}), "encoder is 'bert', expected one of wav2vec2"),
    ],
)
def test_refuses(call, message):
    model, processor = audio_llama("wav2vec2")
    with pytest.raises(lensplug.LensplugError, match=message):
        call(model, processed(processor, PROMPTS[:1], sounds(0.3)))
