"""audio-LLaMA as a Hugging Face model: configuration, model, processor, and conversion of older checkpoints.

Importing this registers the model with transformers' Auto classes. See `modeling` for what it computes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from lensplug.audio_llama.configuration import AudioLlamaConfig as AudioLlamaConfig
from lensplug.audio_llama.modeling import AudioLlamaForConditionalGeneration as AudioLlamaForConditionalGeneration
from lensplug.audio_llama.modeling import AudioLlamaModel as AudioLlamaModel
from lensplug.audio_llama.processing import AudioLlamaProcessor as AudioLlamaProcessor

AutoConfig.register("audio_llama", AudioLlamaConfig, exist_ok=True)
AutoModel.register(AudioLlamaConfig, AudioLlamaModel, exist_ok=True)
AutoModelForCausalLM.register(AudioLlamaConfig, AudioLlamaForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(AudioLlamaConfig, AudioLlamaForConditionalGeneration, exist_ok=True)
AutoProcessor.register(AudioLlamaConfig, AudioLlamaProcessor, exist_ok=True)
