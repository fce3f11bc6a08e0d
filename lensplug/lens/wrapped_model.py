"""What a lens is made of: the Hugging Face model, its processor, and its language core under TransformerLens."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from lensplug import engines
from lensplug.engines.copying import copy_together
from lensplug.hf.language_core import LanguageCore
from lensplug.proof.report import Proof
from lensplug.provenance import fingerprint as checkpoint


class WrappedModel:
    """The two models of a lens."""

    def __init__(
        self,
        hf_model: Any,
        processor: Any,
        core: LanguageCore,
        model: Any,
        *,
        engine: engines.EngineName,
        process_weights: bool = False,
        proof: Proof | None = None,
    ) -> None:
        """Use `lensplug.wrap` or `lensplug.load`."""
        self.hf_model = hf_model
        self.processor = processor
        self.core = core
        self.model = model
        self.engine = engine
        self.process_weights = process_weights
        self.proof = Proof(core.name, engine, "", (), "not proved") if proof is None else proof
        checkpoint.remember(model, hf_model, core.decoder, core.head)

    def __deepcopy__(self, memo: dict[int, Any]) -> WrappedModel:
        """A lens with its own copy of the weights, shared between its two models."""
        hf_model, model = copy_together(self.hf_model, self.model, memo)
        processor = copy.deepcopy(self.processor, memo)
        core = replace(LanguageCore.of(hf_model), asked=self.core.asked)
        options: dict[str, Any] = {"engine": self.engine, "process_weights": self.process_weights, "proof": self.proof}
        return type(self)(hf_model, processor, core, model, **options)

    proof: Proof
    """What was proved of the wrapped core when it was wrapped: `print(lens.proof)`, `lens.proof.to_dataframe()`."""

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; None where there is no processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    def __repr__(self) -> str:
        """Model, engine, size."""
        cfg, dtype = self.model.cfg, str(self.core.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({type(self.hf_model).__name__} as {self.engine}: {cfg.n_layers} layers x"
            f" {cfg.n_heads} heads, d_model {cfg.d_model}, {dtype} on {self.core.device})"
        )
