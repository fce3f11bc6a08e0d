"""Faults put into a wrapped core behind its back, for the proof to find: a weight, an epsilon, a rotation, a mask.

Each changes the wrapped copy alone; the Hugging Face model stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from support import beside
from support.models import text_model


@dataclass(frozen=True)
class Mutation:
    """One fault."""

    family: str
    what: str
    make: Callable[[Any], Any]
    """Takes the bridge."""
    check: str
    """The name of the check that must say it."""
    layer: int | None = 1
    """The layer that must be named."""

    def __str__(self) -> str:
        """For pytest."""
        return f"{self.family}: {self.what}"


FAMILIES: dict[str, Callable[[], Any]] = {
    "Llama": lambda: text_model("llama", attention_bias=True),
    "Llama 3 rotations": lambda: text_model("llama-llama3-rope"),
    "Qwen2": lambda: text_model("qwen2"),
    "Mistral": lambda: text_model("mistral-window"),
    "Qwen3": lambda: text_model("qwen3"),
    "Gemma 3": beside.gemma3,
    "Qwen2-VL": beside.qwen2_vl,
}


def decoder(model: Any) -> Any:
    """The decoder inside a bridge."""
    return model.original_model.model


def weight(path: str, change: Callable[[Tensor], Tensor], name: str = "weight") -> Callable[[Any], None]:
    """A parameter of a block replaced by a changed copy: "attn.q"."""

    def make(model: Any) -> None:
        component: Any = model.blocks[1]
        for part in path.split("."):
            component = getattr(component, part)
        module = component.original_component
        value = getattr(module, name)
        setattr(
            module, name, None if value is None else nn.Parameter(change(value.detach().clone()), requires_grad=False)
        )

    return make


def entry(value: Tensor) -> Tensor:
    """One number of a matrix is another."""
    value[3, 5] += 0.05
    return value


def head(value: Tensor) -> Tensor:
    """The first head is a hundredth larger."""
    value[:8] *= 1.01
    return value


def without_bias(path: str) -> Callable[[Any], None]:
    def make(model: Any) -> None:
        component: Any = model.blocks[1]
        for part in path.split("."):
            component = getattr(component, part)
        component.original_component.bias = None

    return make


def epsilon(path: str) -> Callable[[Any], None]:
    """A norm with ten times its epsilon."""

    def make(model: Any) -> None:
        component: Any = model if path == "ln_final" else model.blocks[1]
        for part in path.split("."):
            component = getattr(component, part)
        component.config = copy.copy(component.config)
        component.config.eps = 10 * component.config.eps
        for name in ("variance_epsilon", "eps"):
            if hasattr(component.original_component, name):
                setattr(component.original_component, name, 10 * getattr(component.original_component, name))

    return make


def rotary(change: Callable[[Tensor], Tensor], name: str = "inv_freq") -> Callable[[Any], None]:
    """Other frequencies of the rotations."""

    def make(model: Any) -> None:
        module = decoder(model).rotary_emb
        module = getattr(module, "original_component", module)
        setattr(module, name, change(getattr(module, name).clone()))

    return make


def attention(name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def make(model: Any) -> None:
        module = model.blocks[1].attn.original_component
        setattr(module, name, change(getattr(module, name)))

    return make


def norm_skipped(name: str) -> Callable[[Any], None]:
    def make(model: Any) -> None:
        norm = getattr(model.blocks[1].attn, name)
        object.__setattr__(norm, "forward", lambda x, *args, **kwargs: x)

    return make


def activation(model: Any) -> None:
    mlp = model.blocks[1].mlp
    mlp.original_component.act_fn = nn.ReLU()
    vars(mlp)["forward"].__self__._act = nn.ReLU()  # the patch that computes it in place


def activation_under_gradients(model: Any) -> None:
    """The patch that computes in place leaves runs with gradients to the module."""
    model.blocks[1].mlp.original_component.act_fn = nn.ReLU()


def scaled_output(path: str, factor: float) -> Callable[[Any], None]:
    """What a part writes times a factor: a residual multiplier, a soft cap, a scaling that is wrong."""

    def make(model: Any) -> None:
        component: Any = model.blocks[1] if not path.startswith("model.") else model
        for part in path.removeprefix("model.").split("."):
            component = getattr(component, part)
        forward = component.forward

        def scaled(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

        object.__setattr__(component, "forward", scaled)

    return make


def embedding_multiplier(model: Any) -> None:
    """Embeddings are scaled on their way into the first block."""
    first = model.blocks[0]
    forward = first.forward
    object.__setattr__(first, "forward", lambda hidden_states, *a, **k: forward(hidden_states * 1.01, *a, **k))


def window(model: Any) -> None:
    decoder(model).config.sliding_window -= 1


def padding_let_in(model: Any) -> None:
    """The decoder is not told what is padding."""
    inner = decoder(model)
    forward = inner.forward
    inner.forward = lambda *args, attention_mask=None, **kwargs: forward(*args, attention_mask=None, **kwargs)


def untied_head(model: Any) -> None:
    linear = model.unembed.original_component
    linear.weight = nn.Parameter(linear.weight.detach() * 1.001 + 0.001, requires_grad=False)


def two_layers_swapped(model: Any) -> None:
    first, second = model.blocks[1].mlp, model.blocks[2].mlp
    for name in ("gate", "in", "out"):
        mine, its = (getattr(mlp, name).original_component for mlp in (first, second))
        mine.weight, its.weight = its.weight, mine.weight


def edit_without_effect(name: str) -> Callable[[Any], None]:
    """A hook point that shows a copy: what hooks return is lost."""

    def make(model: Any) -> None:
        point = model.hook_dict[f"blocks.1.{name}"]
        for index in range(len(model.blocks)):
            point = model.hook_dict[f"blocks.{index}.{name}"]
            call = type(point).__call__

            class Deaf(type(point)):  # type: ignore[misc]
                def __call__(self, value: Any, *args: Any, _call: Any = call, **kwargs: Any) -> Any:
                    _call(self, value.clone(), *args, **kwargs)
                    return value

            point.__class__ = Deaf

    return make


def detached(model: Any) -> None:
    """A block through whose attention no gradient flows."""
    attn = model.blocks[1].attn
    forward = attn.forward
    object.__setattr__(attn, "forward", lambda *a, **k: (forward(*a, **k)[0].detach(), None))


def cache_forgotten(model: Any) -> None:
    attn = model.blocks[1].attn
    object.__setattr__(attn, "_update_kv_cache", lambda k, v, **kwargs: (k, v))


def bidirectional(model: Any) -> None:
    """A layer in which later positions are seen."""
    attn = model.blocks[1].attn
    object.__setattr__(attn, "_apply_reconstruct_attention_mask", lambda attn_scores, **kwargs: attn_scores)
    object.__setattr__(attn, "_scrub_compatibility_pattern_nans", lambda pattern: pattern)


ALONE, NORMS, GIVEN = "each layer alone", "each norm alone", "masks and rotations"
RESIDUAL = "every layer's residual stream"
MUTATIONS = [
    Mutation("Llama", "one number of W_Q", weight("attn.q", entry), ALONE),
    Mutation("Llama", "one number of W_K", weight("attn.k", entry), ALONE),
    Mutation("Llama", "one number of W_V", weight("attn.v", entry), ALONE),
    Mutation("Llama", "one number of W_O", weight("attn.o", entry), ALONE),
    Mutation("Llama", "the bias of v dropped", without_bias("attn.v"), ALONE),
    Mutation("Llama", "epsilon of the first norm x 10", epsilon("ln1"), ALONE),
    Mutation("Llama", "the rotary base", rotary(lambda f: f**1.01), GIVEN, 0),
    Mutation("Llama 3 rotations", "rotations scaled as if not stretched", rotary(lambda f: f * 1.001), GIVEN, 0),
    Mutation("Llama 3 rotations", "attention seen both ways", bidirectional, ALONE),
    Mutation("Llama", "attention scaling", attention("scaling", lambda s: s * 1.01), ALONE),
    Mutation("Qwen2", "one number of W_gate", weight("mlp.gate", entry), ALONE),
    Mutation("Qwen2", "one number of W_in", weight("mlp.in", entry), ALONE),
    Mutation("Qwen2", "one number of W_out", weight("mlp.out", entry), ALONE),
    Mutation("Qwen2", "one head's queries x 1.01", weight("attn.q", head), ALONE),
    Mutation("Qwen2", "the bias of q dropped", without_bias("attn.q"), ALONE),
    Mutation("Qwen2", "another activation function", activation, ALONE),
    Mutation(
        "Qwen2",
        "another one where gradients are taken",
        activation_under_gradients,
        "gradients of the embeddings",
        None,
    ),
    Mutation("Qwen2", "MLPs of two layers swapped", two_layers_swapped, ALONE),
    Mutation("Qwen2", "a head of its own", untied_head, "final norm and head alone", None),
    Mutation("Qwen2", "a logits scaling", scaled_output("model.unembed", 1.01), "final norm and head alone", None),
    Mutation("Mistral", "a window one position short", window, GIVEN, 0),
    Mutation("Mistral", "padding is seen", padding_let_in, f"{RESIDUAL} (left-padded)", 0),
    Mutation("Mistral", "a residual multiplier", scaled_output("mlp", 0.99), ALONE),
    Mutation("Mistral", "a key-value cache forgotten", cache_forgotten, "greedy tokens behind a key-value cache", None),
    Mutation("Qwen3", "the norm of q skipped", norm_skipped("q_norm"), ALONE),
    Mutation("Qwen3", "the norm of k skipped", norm_skipped("k_norm"), ALONE),
    Mutation("Qwen3", "epsilon of the norm of q x 10", epsilon("attn.q_norm"), NORMS),
    Mutation("Qwen3", "epsilon of the final norm x 10", epsilon("ln_final"), "final norm and head alone", None),
    Mutation("Qwen3", "no gradient through an attention", detached, "gradients of the embeddings", None),
    Mutation("Qwen3", "edits of z are lost", edit_without_effect("attn.hook_z"), "edit of attn.hook_z"),
    Mutation(
        "Qwen3", "edits of the pattern are lost", edit_without_effect("attn.hook_pattern"), "edit of attn.hook_pattern"
    ),
    Mutation("Gemma 3", "a norm's weight", weight("ln2", lambda w: w + 0.01), ALONE),
    Mutation("Gemma 3", "epsilon of the norm behind attention x 10", epsilon("ln1_post"), NORMS),
    Mutation("Gemma 3", "an embedding multiplier", embedding_multiplier, RESIDUAL, 0),
    Mutation("Gemma 3", "what attention writes", scaled_output("ln1_post", 1.01), ALONE),
    Mutation("Gemma 3", "a window one position short", window, GIVEN, 0),
    Mutation("Qwen2-VL", "the rotary base", rotary(lambda f: f**1.01), GIVEN, 0),
    Mutation("Qwen2-VL", "one head's values x 1.01", weight("attn.v", head), ALONE),
    Mutation("Qwen2-VL", "the last matrix of the MLP", scaled_output("mlp.out", 1.001), ALONE),
]
"""At least thirty, over at least six families."""
