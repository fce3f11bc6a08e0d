"""The tokenizer of a tiny model: byte-level BPE in which every word of its corpus is one token."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(corpus: Sequence[str], *, special: Sequence[str], eos: str, pad: str) -> PreTrainedTokenizerFast:
    """A tokenizer that pads on the left.

    Args:
        corpus: Every text that the model is to read and write.
        special: Its special tokens, in the order of their ids.
        eos: The one that ends a turn.
        pad: The one that pads.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,  # an upper bound: training ends when every word is one token
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=[token for token in special if token not in (eos, pad)],
        padding_side="left",
    )
