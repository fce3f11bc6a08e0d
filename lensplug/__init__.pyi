from . import analysis as analysis
from . import patches as patches
from . import tiny as tiny
from . import views as views
from .attentions import cache_from_attentions as cache_from_attentions
from .attentions import grads_from_attentions as grads_from_attentions
from .errors import LensplugError as LensplugError
from .generation import Answer as Answer
from .geometry import AudioTimeline as AudioTimeline
from .geometry import ImageGrid as ImageGrid
from .geometry import VideoGrid as VideoGrid
from .groups import Groups as Groups
from .inputs import MultimodalInput as MultimodalInput
from .lens import MultimodalLens as MultimodalLens
from .loading import load as load
from .loading import wrap as wrap
from .modality import ModalityMap as ModalityMap
from .modality import Span as Span
from .parity import ParityReport as ParityReport
from .words import join_pieces as join_pieces

__version__: str
