"""A sparse autoencoder in the place of an activation, or a transcoder in the place of an MLP.

Method: x is what is at the SAE's hook, f = encode(x) its latents, f' the latents with some of them set or multiplied.
The activation becomes

- with the error term: y + decode(f') - decode(f), where y is what the model computes there itself: what the SAE does
  not explain stays, and unchanged latents change nothing;
- without: the SAE's own reconstruction, with f' for f.

For an SAE, y is x. A transcoder reads x at one hook and stands for y, what the model computes at another.

The object is SAELens's (`pip install "lensplug[sae]"`), or any with `encode`, `decode`, a call and `cfg`.

Papers: Cunningham et al. 2023, arXiv 2309.08600; Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647 (error
terms); Dunefsky et al. 2024, arXiv 2406.11944 (transcoders).

When to use it: to turn latents off or up where they act, and see what the answer becomes.

When not to use it: an SAE of a text model need not explain activations at image or sound positions. Without the error
term, and with nothing set, `acted.to_dataframe()["relative_change"]` is the share of the norm that it does not explain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.interventions.edit import ActivationHook, Changes, refuse_missing_hook
from lensplug.interventions.equality import EqualByValue
from lensplug.interventions.places import Place, RunPositions, in_words
from lensplug.validation.arguments import admitted


@dataclass(frozen=True, eq=False)
class SpliceSAE(EqualByValue):
    """An SAE or transcoder is put into the run, with some latents set or multiplied.

    with lens.intervene(SpliceSAE(sae, latents={1234: 0.0})):
        lens.generate(inputs).text
    """

    sae: Any
    """SAELens's object; where it belongs is read from its `cfg.metadata`."""
    latents: Mapping[int, float | int] = field(default_factory=dict)
    """Latent -> the activation that it is set to."""
    factors: Mapping[int, float | int] = field(default_factory=dict)
    """Latent -> what its activation is multiplied by."""
    error_term: bool = True
    positions: Place = "all"
    hook: str | None = None
    """The name of the hook that it reads, where its metadata does not say it, or says another model's."""
    hook_out: str | None = None
    """Of a transcoder, the name of the hook that it stands for."""

    def __post_init__(self) -> None:
        """Raise if it is no SAE.

        Raises:
            LensplugError: Then, or if a latent is both set and multiplied.
        """
        for name in ("encode", "decode", "__call__", "cfg"):
            if not hasattr(self.sae, name):
                raise LensplugError(f"sae is a {type(self.sae).__name__} without {name}: expected an SAE of SAELens.")
        admitted(self.error_term, bool, "error_term")
        if both := set(self.latents) & set(self.factors):
            raise LensplugError(f"latent {min(both)} is both set (latents=) and multiplied (factors=): give one.")
        size = getattr(self.sae.cfg, "d_sae", None)
        for latent, value in [*self.latents.items(), *self.factors.items()]:
            admitted(value, float, f"the value of latent {latent}")
            if admitted(latent, int, "a latent") < 0 or size is not None and latent >= size:
                raise LensplugError(f"latent {latent} is not there: the SAE has 0 to {size - 1 if size else '?'}.")
        if getattr(self.sae, "use_error_term", False):
            raise LensplugError("sae.use_error_term is True: set it to False, and use error_term= of SpliceSAE.")

    def __str__(self) -> str:
        """In words, for provenance."""
        reads, writes = self._hooks()
        where = reads if reads == writes else f"{reads} -> {writes}"
        edits = [f"{name}={dict(value)!r}" for name in ("latents", "factors") if (value := getattr(self, name))]
        parts = [f"{type(self.sae).__name__} at {where}", *edits, f"error_term={self.error_term}"]
        return f"SpliceSAE({', '.join([*parts, f'positions={in_words(self.positions)}'])})"

    def changes(self, model: Any, positions: RunPositions) -> Changes:
        """The hooks of a run.

        Raises:
            LensplugError: If the model has no such hook.
        """
        reads, writes = self._hooks()
        placed, splice = positions.place(self.positions, "positions"), _Splice(self)
        for name in (reads, writes):
            refuse_missing_hook(model, name)
        if reads == writes:
            return Changes([ActivationHook(writes, splice.of_itself, placed, positions.generating)])
        return Changes(
            [
                ActivationHook(reads, splice.noted, placed, positions.generating),
                ActivationHook(writes, splice.of_noted, placed, positions.generating),
            ]
        )

    def _hooks(self) -> tuple[str, str]:
        """The hooks that it reads and stands for."""
        metadata = getattr(self.sae.cfg, "metadata", None)
        reads = self.hook or getattr(metadata, "hook_name", None) or getattr(self.sae.cfg, "hook_name", None)
        if not isinstance(reads, str):
            raise LensplugError("the SAE does not say which hook it is of: give hook='blocks.8.hook_resid_post'.")
        writes = self.hook_out or getattr(metadata, "hook_name_out", None) or reads
        return reads, str(writes)


class _Splice:
    """One SAE in one run."""

    def __init__(self, edit: SpliceSAE) -> None:
        self._edit, self._read = edit, torch.empty(0)

    def noted(self, x: Tensor) -> Tensor:
        """What a transcoder reads; nothing is changed."""
        self._read = x
        return x

    def of_noted(self, y: Tensor) -> Tensor:
        """What becomes of what a transcoder stands for."""
        return self._spliced(self._read, y)

    def of_itself(self, x: Tensor) -> Tensor:
        """What becomes of what an SAE reads."""
        return self._spliced(x, x)

    def _spliced(self, x: Float[Tensor, "batch pos ..."], y: Float[Tensor, "batch pos ..."]) -> Tensor:
        sae = self._edit.sae
        read = self._flat(x)
        latents = sae.encode(read)
        edited = latents.clone()
        for latent, value in self._edit.latents.items():
            edited[..., latent] = value
        for latent, factor in self._edit.factors.items():
            edited[..., latent] *= factor
        is_edited = bool(self._edit.latents or self._edit.factors)
        change = sae.decode(edited) - sae.decode(latents) if is_edited else torch.zeros((), device=x.device)
        if self._edit.error_term:
            return y + change.to(y).reshape(y.shape if is_edited else ())
        reconstruction: Tensor = sae(read) + change
        return reconstruction.to(y).reshape(y.shape)

    def _flat(self, x: Tensor) -> Tensor:
        """As the SAE takes it: of heads' outputs, all heads of a position together, unless it does that itself."""
        sae = self._edit.sae
        is_by_head = x.ndim == 4 and not getattr(sae, "hook_z_reshaping_mode", False)
        dtype = getattr(sae, "dtype", None) or next(sae.parameters()).dtype
        return (x.flatten(2) if is_by_head else x).to(dtype)
