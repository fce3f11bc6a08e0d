"""LogitRows: logits of chosen positions are those of the whole, and nothing stays behind."""

import pytest
import torch
from support.built import ENGINES, built
from support.models import snapshot, text_model, text_tokens

from lensplug import LensplugError
from lensplug.patches import LogitRows


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_logits_of_rows_and_before_is_after(engine, cap):
    model = built(engine, text_model("llama"))
    model.cfg.output_logits_soft_cap = cap
    tokens, rows = text_tokens(12, 2), torch.tensor([[11, 3], [0, 3]])
    before, held, logits = snapshot(model), dict(model.unembed.__dict__), model(tokens)
    patch = LogitRows(model, rows)
    with patch:
        chosen, cache = model.run_with_cache(tokens)
        with pytest.raises(LensplugError, match="rows are for 2 examples, the model runs on 1"):
            model(tokens[:1])
    torch.testing.assert_close(chosen, torch.stack([logits[0, [11, 3]], logits[1, [0, 3]]]), atol=1e-4, rtol=1e-4)
    assert cache["unembed.hook_in"].shape[1] == 2
    assert snapshot(model) == before and dict(model.unembed.__dict__) == held
    assert torch.equal(model(tokens), logits)
