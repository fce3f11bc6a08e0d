"""The logit lens: its last entry is the model's own output; ranks, KL and memory by hand."""

from __future__ import annotations

import math

import pytest
import torch
from caches import ROTARY, cache_of_residuals, padded, run, text_model, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import kl_div
from transformers import PreTrainedTokenizerFast

from lensplug.analysis import logit_lens
from lensplug.analysis import logit_lens as _  # noqa: F401
from lensplug.errors import LensplugError

FORMS = {
    "LN": {"normalization_type": "LN"},
    "LNPre": {"normalization_type": "LNPre"},
    "LN-final-RMS": {"normalization_type": "LN", "final_rms": True},
    "LNPre-final-RMS": {"normalization_type": "LNPre", "final_rms": True},
    "RMS": {"normalization_type": "RMS"},
    "RMSPre": {"normalization_type": "RMSPre"},
    "none": {"normalization_type": None},
    "soft-cap": {"normalization_type": "RMS", "output_logits_soft_cap": 2.0},
    "rotary": ROTARY,
    "large-eps": {"normalization_type": "LN", "eps": 0.5},
}
"""Every final norm that HookedTransformer knows."""
