"""lensplug: what a multimodal language model does with what it sees and hears, for TransformerLens.

import lensplug
from lensplug import analysis, views

lens = lensplug.tiny.llava_onevision()
inputs = lens.prepare("What is the color? Answer single word.", images=[image])
logits, cache = lens.run_with_cache(inputs)
analysis.head_specialization(cache, inputs.modality, query=-1)
"""

from lensplug import analysis as analysis
from lensplug import tiny as tiny
from lensplug.attentions import cache_from_attentions as cache_from_attentions
from lensplug.attentions import grads_from_attentions as grads_from_attentions
from lensplug.errors import LensplugError as LensplugError
from lensplug.generation import Answer as Answer
from lensplug.geometry import AudioTimeline as AudioTimeline
from lensplug.geometry import ImageGrid as ImageGrid
from lensplug.geometry import VideoGrid as VideoGrid
from lensplug.groups import Groups as Groups
from lensplug.inputs import MultimodalInput as MultimodalInput
from lensplug.lens import MultimodalLens as MultimodalLens
from lensplug.loading import load as load
from lensplug.loading import wrap as wrap
from lensplug.modality import ModalityMap as ModalityMap
from lensplug.modality import Span as Span
from lensplug.parity import ParityReport as ParityReport
from lensplug.words import join_pieces as join_pieces

__version__ = "0.1.0"
