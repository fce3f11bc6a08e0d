"""The tiny audio-LLaMA: its processor and its untrained model.

A real `AudioLlamaForConditionalGeneration` (wav2vec2 encoder, projector, Llama core with grouped-query
attention and a tied head) with its processor, small enough to train on two cores. It hears 8,000 samples
a second, in frames of 40 ms, and a sound becomes ten vectors, as in the large model.
"""

from __future__ import annotations

from transformers import LlamaConfig, PreTrainedTokenizerFast, Wav2Vec2Config, Wav2Vec2FeatureExtractor

from lensplug.audio_llama import AudioLlamaConfig, AudioLlamaForConditionalGeneration, AudioLlamaProcessor
from lensplug.tiny.voices import SAMPLING_RATE, every_text
from lensplug.tiny.words import word_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% for part in message['content'] if part['type'] == 'audio' %}{{ '<audio>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Sounds first, then the text."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every word that the voices use is one token."""
    special = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<audio>"]
    return word_tokenizer(every_text(), special=special, eos="<|end|>", pad="<|pad|>")


def build_config(tokenizer: PreTrainedTokenizerFast) -> AudioLlamaConfig:
    """Six layers of six heads, 96 wide, over a wav2vec2 encoder of three layers, 64 wide."""
    audio = Wav2Vec2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        conv_dim=(32,) * 5,
        conv_kernel=(10, 8, 8, 4, 4),
        conv_stride=(5, 4, 4, 2, 2),
        num_feat_extract_layers=5,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        apply_spec_augment=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )
    text = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,  # padded to a multiple of 8, as large vocabularies are
        hidden_size=96,
        intermediate_size=224,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.08,  # the default of 0.02 is for wide models; here it leaves attention flat for long
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AudioLlamaConfig(
        audio,
        text,
        audio_token_id=tokenizer.convert_tokens_to_ids("<audio>"),
        sampling_rate=SAMPLING_RATE,
        projector_dropout=0.0,
    )


def build_processor() -> AudioLlamaProcessor:
    """The real processor, over the tiny tokenizer."""
    tokenizer = build_tokenizer()
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE, do_normalize=True, return_attention_mask=True)
    config = build_config(tokenizer)
    processor: AudioLlamaProcessor = AudioLlamaProcessor.of(config, extractor, tokenizer, chat_template=CHAT_TEMPLATE)
    return processor


def build_model(processor: AudioLlamaProcessor) -> AudioLlamaForConditionalGeneration:
    """The model with random weights (from torch's global generator)."""
    tokenizer = processor.tokenizer
    model = AudioLlamaForConditionalGeneration(build_config(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
