"""Pictures: a result in, a figure or a widget out. The only place that imports plotly and CircuitsVis.

plotly draws what CircuitsVis has no component for (layer x head, layer x position, images, sounds); CircuitsVis
draws attention between tokens. Everything a view returns is self-contained: nothing is loaded from a
network, and the text of tokens is escaped.
"""

from lensplug.groups import group_positions as group_positions
from lensplug.views.ablation import modality_ablation as modality_ablation
from lensplug.views.activation_patching import activation_patching as activation_patching
from lensplug.views.by_layer import attention_by_layer as attention_by_layer
from lensplug.views.circuits import Widget as Widget
from lensplug.views.circuits import attention_heads as attention_heads
from lensplug.views.circuits import colored_tokens as colored_tokens
from lensplug.views.comparison import comparison as comparison
from lensplug.views.deletion import agreement as agreement
from lensplug.views.deletion import deletion_curve as deletion_curve
from lensplug.views.draw import draw as draw
from lensplug.views.explorer import Explorer as Explorer
from lensplug.views.explorer import image_explorer as image_explorer
from lensplug.views.flow import attention_flow as attention_flow
from lensplug.views.heads import head_specialization as head_specialization
from lensplug.views.heads_by_layer import heads_by_layer as heads_by_layer
from lensplug.views.image import image_overlay as image_overlay
from lensplug.views.lens_table import logit_lens as logit_lens
from lensplug.views.matrix import attention_matrix as attention_matrix
from lensplug.views.received import received_attention as received_attention
from lensplug.views.ribbon import modality_ribbon as modality_ribbon
from lensplug.views.rollout import attention_rollout as attention_rollout
from lensplug.views.signal import attention_over_signal as attention_over_signal
from lensplug.views.sound import sound_overlay as sound_overlay
from lensplug.views.sound import sound_player as sound_player
from lensplug.views.video import video_overlay as video_overlay
