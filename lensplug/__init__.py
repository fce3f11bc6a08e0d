"""lensplug: what a multimodal language model does with what it sees and hears, for TransformerLens.

import lensplug
from lensplug import analysis, views

lens = lensplug.tiny.llava_onevision()
inputs = lens.prepare("What is the color? Answer single word.", images=[image])
logits, cache = lens.run_with_cache(inputs)
analysis.head_specialization(cache, inputs.modality, query=-1)
"""

import lazy_loader

# The names are listed once, with where they are, in `__init__.pyi`; a module is imported when one of its names is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
