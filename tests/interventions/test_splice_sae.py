"""SAEs and transcoders of SAELens in a run: what they do to it against plain arithmetic with their own methods."""

from __future__ import annotations

import pytest
import torch
from support.built import ENGINES
from support.models import largest_difference, text_model, text_tokens

import lensplug
from lensplug import LensplugError
from lensplug.interventions import SpliceSAE

sae_lens = pytest.importorskip("sae_lens", reason="SAELens asks for TransformerLens 3: pip install 'lensplug[sae]'")


@pytest.fixture(scope="module", params=ENGINES)
def lens(request):
    return lensplug.wrap(text_model("qwen2"), engine=request.param)


@pytest.fixture(scope="module")
def inputs(lens):
    return lens.encode({"input_ids": text_tokens(16, 2)})


def sae(hook="blocks.1.hook_resid_post", d_in=32, d_sae=64, identity=False):
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=hook)
    config = sae_lens.StandardSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False, metadata=metadata)
    made = sae_lens.StandardSAE(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            value = getattr(made, name)
            value.copy_(torch.randn(value.shape, generator=generator) / d_in**0.5)
        if identity:  # x is the difference of its positive and its negative part
            eye = torch.eye(d_in)
            made.W_enc.copy_(torch.cat([eye, -eye], dim=1))
            made.W_dec.copy_(torch.cat([eye, -eye], dim=0))
            made.b_enc.zero_()
            made.b_dec.zero_()
    return made


def logits_of(lens, inputs, *edits):
    with torch.no_grad(), lens.intervene(*edits):
        return lens.model(inputs)


def test_an_identity_changes_nothing(lens, inputs):
    plain = logits_of(lens, inputs)
    assert largest_difference(logits_of(lens, inputs, SpliceSAE(sae(identity=True), error_term=False)), plain) < 1e-4
    assert torch.equal(logits_of(lens, inputs, SpliceSAE(sae())), plain)
    assert largest_difference(logits_of(lens, inputs, SpliceSAE(sae(), error_term=False)), plain) > 0.1


def by_hook(lens, inputs, name, change):
    with torch.no_grad():
        return lens.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: change(x))])


@pytest.mark.parametrize("error_term", [True, False])
def test_latents_are_set_and_multiplied(lens, inputs, error_term):
    made = sae()

    def change(x):
        latents = made.encode(x)
        edited = latents.clone()
        edited[..., 3], edited[..., 7] = 5.0, 2.5 * latents[..., 7]
        return made.decode(edited) + (x - made.decode(latents) if error_term else 0)

    edit = SpliceSAE(made, latents={3: 5.0}, factors={7: 2.5}, error_term=error_term)
    expected = by_hook(lens, inputs, "blocks.1.hook_resid_post", change)
    assert largest_difference(logits_of(lens, inputs, edit), expected) < 1e-3
    assert largest_difference(logits_of(lens, inputs), expected) > 0.1


def test_heads_are_read_together(lens, inputs):
    made = sae(hook="blocks.1.attn.hook_z")
    expected = by_hook(lens, inputs, "blocks.1.attn.hook_z", lambda z: made(z.flatten(2)).view(z.shape))
    assert largest_difference(logits_of(lens, inputs, SpliceSAE(made, error_term=False)), expected) < 1e-4


@pytest.mark.parametrize("error_term", [True, False])
def test_a_transcoder_stands_for_an_mlp(lens, inputs, error_term):
    config = sae_lens.SkipTranscoderConfig(d_in=32, d_out=32, d_sae=48, apply_b_dec_to_input=False)
    made = sae_lens.SkipTranscoder(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 6)
    reads, writes = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    edit = SpliceSAE(made, latents={2: 3.0}, error_term=error_term, hook=reads, hook_out=writes)
    read: list[torch.Tensor] = []

    def change(y, hook):
        latents = made.encode(read[-1])
        edited = latents.clone()
        edited[..., 2] = 3.0
        return (y if error_term else made(read[-1])) + made.decode(edited) - made.decode(latents)

    with torch.no_grad():
        expected = lens.run_with_hooks(inputs, fwd_hooks=[(reads, lambda x, hook: read.append(x)), (writes, change)])
    found = logits_of(lens, inputs, edit)
    assert largest_difference(found, expected) < 1e-3 < largest_difference(found, logits_of(lens, inputs))


def test_an_answer_is_written_with_it(lens, inputs):
    made = sae()
    fwd_hooks = [("blocks.1.hook_resid_post", lambda x, hook: made(x))]
    with lens.intervene(SpliceSAE(made, error_term=False)):
        answer = lens.generate(inputs, max_new_tokens=5)
    assert torch.equal(answer.tokens, lens.generate(inputs, max_new_tokens=5, fwd_hooks=fwd_hooks).tokens)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: SpliceSAE(torch.nn.Linear(2, 2)), "without encode"),
        (lambda: SpliceSAE(sae(), latents={64: 0.0}), "latent 64 is not there"),
        (lambda: SpliceSAE(sae(), latents={1: 0.0}, factors={1: 2.0}), "both set"),
        (lambda: SpliceSAE(sae(hook="blocks.9.hook_resid_post")), "this model has not"),
        (lambda: SpliceSAE(sae(hook=None)), "does not say which hook"),
    ],
)
def test_refusals(lens, inputs, edit, message):
    with pytest.raises(LensplugError, match=message):
        logits_of(lens, inputs, edit())
