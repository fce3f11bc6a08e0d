"""Audio-LLaMA and Voxtral as TransformerBridges of TransformerLens itself: the whole model, encoder and all.

TransformerLens finds an adapter by the name of the model's class. Two are declared as entry points of this package
(`transformer_lens.architectures`), which TransformerLens reads when it builds a bridge of a model in memory;
`boot_transformers` looks into a table of its own first, and `register` writes them there:

    import lensplug.adapters
    from transformer_lens.model_bridge import TransformerBridge

    lensplug.adapters.register()
    bridge = TransformerBridge.boot_transformers("my-audio-llama", device="cpu")
    logits, cache = bridge.run_with_cache(tokens, sounds=waveforms, attention_mask=mask)

When to use it: to hook the encoder and the projector as well as the language model, with TransformerLens alone. When
not: for analyses by modality. `hook_embed` shows the placeholders' embeddings there, not the sound's, and nothing says
which position is what; `lensplug.load` wraps the language core, which receives both merged.
"""

from __future__ import annotations

from typing import Any

from transformer_lens.factories import architecture_adapter_factory
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.glm_asr import GlmAsrArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter


class AudioLlamaAdapter(LlamaArchitectureAdapter):
    """`lensplug.audio_llama`: an encoder and a projector (hooks where they begin and end) in front of a LLaMA."""

    def __init__(self, cfg: Any) -> None:
        """The LLaMA's components, one level deeper, and the two in front of it."""
        super().__init__(cfg)
        self.cfg.is_multimodal = True
        self._reprefix_components("model.", "model.language_model.")
        self.components["audio_encoder"] = GeneralizedComponent(name="model.audio_tower")
        self.components["audio_projector"] = GeneralizedComponent(name="model.projector")


class VoxtralAdapter(GlmAsrArchitectureAdapter):
    """Voxtral has its modules under the names that GLM-ASR has (in transformers from 5.10 on)."""


ADAPTERS = {
    "AudioLlamaForConditionalGeneration": AudioLlamaAdapter,
    "VoxtralForConditionalGeneration": VoxtralAdapter,
}
"""The class of a Hugging Face model -> its adapter; also in pyproject.toml."""


def register() -> None:
    """Let `boot_transformers` find them, and transformers find audio-LLaMA; what TransformerLens has itself stays."""
    import lensplug.audio_llama  # noqa: F401  its Auto classes

    factory = architecture_adapter_factory.ArchitectureAdapterFactory
    factory.discover_entry_points()  # first: it warns of entry points whose names are taken
    for name, adapter in ADAPTERS.items():
        if name not in architecture_adapter_factory.SUPPORTED_ARCHITECTURES:
            factory.register_adapter(name, adapter)
            architecture_adapter_factory.SUPPORTED_ARCHITECTURES[name] = adapter
