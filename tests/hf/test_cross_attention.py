"""Models whose media enter by cross-attention are refused by what is true of them."""

from __future__ import annotations

import pytest
from support.families.small import small_model

import lensplug
from lensplug import LensplugError


@pytest.mark.parametrize(
    ("family", "where"), [("mllama", r"in layers 3"), ("idefics", "in its gated_cross_attn_layers")]
)
def test_the_reason_names_the_layers(family, where):
    with pytest.raises(LensplugError, match=rf"by cross-attention \({where}\), beside the words"):
        lensplug.wrap(small_model(family))
