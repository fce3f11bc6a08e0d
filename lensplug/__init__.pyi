from . import analysis as analysis
from . import audio_llama as audio_llama
from . import media as media
from . import patches as patches
from . import reductions as reductions
from . import statistics as statistics
from . import tiny as tiny
from . import views as views
from .analysis.saved_results import read as read
from .attentions.cache import cache_from_attentions as cache_from_attentions
from .attentions.cache import grads_from_attentions as grads_from_attentions
from .errors import LensplugError as LensplugError
from .errors import LensplugWarning as LensplugWarning
from .geometry import AudioTimeline as AudioTimeline
from .geometry import ImageGrid as ImageGrid
from .geometry import VideoGrid as VideoGrid
from .inputs.multimodal_input import MultimodalInput as MultimodalInput
from .lens import MultimodalLens as MultimodalLens
from .loading.load_and_wrap import load as load
from .loading.load_and_wrap import wrap as wrap
from .positions.groups import Groups as Groups
from .positions.modality_map import ModalityMap as ModalityMap
from .positions.modality_map import Span as Span
from .positions.words import join_pieces as join_pieces
from .running.generation import Answer as Answer
from .running.parity import ParityReport as ParityReport

__version__: str
