"""CircuitsVis components: pooled, escaped, small, and without a network."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_families import lens

from lensplug import LensplugError, views
from lensplug.positions.groups import group_positions


def properties(widget, key):
    """One property of the call that the widget makes, read back from its script."""
    match = re.search(rf'"{key}": (.*?)(?:, "[a-zA-Z]+": |\}}\s*\)</script>)', widget.body, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def test_groups_cover_every_position_and_pooling_keeps_rows_summing_to_one(seen):
    groups = group_positions(seen.inputs.modality, seen.inputs.str_tokens)
    assert groups.of_position.min() == 0
    assert groups.of_position.unique().tolist() == list(range(len(groups.names)))
    pooled = groups.pool(seen.cache["blocks.0.attn.hook_pattern"][0])
    torch.testing.assert_close(pooled.sum(-1), torch.ones(pooled.shape[:2]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava-full", {"[class token]", "[image·1,1]"}),
        ("llava-next", {"[image·1,1]", "[tiles·3,3]", "[newlines]"}),
        ("internvl", {"[image·2,2]", "[tiles·1,3]"}),
        ("idefics3", {"[image·3,1]", "[tiles·2,2]"}),
    ],
)
def test_the_positions_of_every_family_have_regions(name, expected):
    picture = Image.new("RGB", (500, 300), (90, 50, 30))
    inputs = lens(name).prepare("What is this ?", images=[picture, picture])
    groups = group_positions(inputs.modality, inputs.str_tokens, blocks=3)
    assert expected <= set(groups.names) and "[image]" not in groups.names
    assert groups.of_position.unique().tolist() == list(range(len(groups.names)))


def test_the_positions_of_a_video_are_pooled_by_frame():
    video = np.zeros((3, 60, 80, 3), np.uint8)
    inputs = lens("llava-onevision").prepare("What is this ?", videos=[video])
    groups = group_positions(inputs.modality, inputs.str_tokens)
    assert groups.names[:4] == ["[frame 0]", "[frame 1]", "[frame 2]", "[newline]"]
    assert (groups.of_position == 1).sum() == 196


def test_pooling_sums_keys_and_averages_queries_by_hand(seen):
    groups = group_positions(seen.inputs.modality, seen.inputs.str_tokens)
    pattern = seen.cache["blocks.2.attn.hook_pattern"][0]
    pooled = groups.pool(pattern)
    region = groups.names.index("[image·2,2]")
    members = (groups.of_position == region).nonzero()[:, 0]
    last = len(groups.names) - 1
    torch.testing.assert_close(pooled[:, last, region], pattern[:, -1, members].sum(-1))
    expected = pattern[:, members][:, :, members].sum(-1).mean(-1)
    torch.testing.assert_close(pooled[:, region, region], expected)


def test_attention_heads_hold_the_pooled_pattern_and_stay_small(seen):
    widget = views.attention_heads(seen.cache, seen.inputs, layer=-1)
    groups = group_positions(seen.inputs.modality, seen.inputs.str_tokens)
    shown = torch.tensor(properties(widget, "attention"))
    expected = groups.pool(seen.cache["blocks.5.attn.hook_pattern"][0])
    torch.testing.assert_close(shown, expected, atol=6e-5, rtol=0)
    assert len(widget.to_html()) < 2_000_000
    assert "http://" not in widget.body and "https://" not in widget.body


def test_long_prompts_are_pooled_until_they_fit(seen, monkeypatch):
    monkeypatch.setattr("lensplug.views.tokens.circuitsvis_widgets.ATTENTION_BYTES", 20_000)
    widget = views.attention_heads(seen.cache, seen.inputs, layer=0)
    assert len(json.dumps(properties(widget, "attention"))) < 25_000


def test_a_token_cannot_end_the_script(seen):
    texts = [list(row) for row in seen.inputs.str_tokens]
    texts[0][0] = "</script><script>alert(1)</script>"
    hostile = replace(seen.inputs, str_tokens=texts)
    body = views.attention_heads(seen.cache, hostile, layer=0).body
    assert body.count("</script>") == 1
    assert properties(views.attention_heads(seen.cache, hostile, layer=0), "tokens")[0] == texts[0][0]


def test_a_token_is_no_html_where_circuitsvis_takes_it_for_some(seen):
    texts = [list(row) for row in seen.inputs.str_tokens]
    texts[0][0] = "<img src=x onerror=alert(1)>&lt;"
    widget = views.colored_tokens(torch.zeros(seen.inputs.tokens.shape[1]), replace(seen.inputs, str_tokens=texts))
    assert properties(widget, "tokens")[0] == "<\u2060img src=x onerror=alert(1)>&\u2060lt;"


def test_colored_tokens_sum_over_image_regions(seen):
    values = torch.rand(seen.inputs.tokens.shape[1])
    widget = views.colored_tokens(values, seen.inputs)
    assert sum(properties(widget, "values")) == pytest.approx(float(values.sum()), abs=2e-2)
    with pytest.raises(LensplugError, match="one for each"):
        views.colored_tokens(values[:3], seen.inputs)


def test_no_such_layer(seen):
    with pytest.raises(LensplugError, match="layers 0 to 5"):
        views.attention_heads(seen.cache, seen.inputs, layer=6)


def test_a_notebook_frame_is_self_contained(seen):
    html = views.colored_tokens(torch.zeros(seen.inputs.tokens.shape[1]), seen.inputs)._repr_html_()
    assert html.startswith("<iframe srcdoc=") and "unpkg" not in html
