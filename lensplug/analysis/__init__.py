"""Analyses: pure functions, an ActivationCache in, a frozen result out. One idea per file.

None of them imports a model, an engine or a picture library; each takes a cache that TransformerLens
made alone just as well, and says in `needs` which hooks it reads, for `names_filter`.
"""

from lensplug.analysis.activation_patching import ActivationPatching as ActivationPatching
from lensplug.analysis.activation_patching import activation_patching as activation_patching
from lensplug.analysis.agreement import Agreement as Agreement
from lensplug.analysis.agreement import agreement as agreement
from lensplug.analysis.attention_flow import Flow as Flow
from lensplug.analysis.attention_flow import attention_flow as attention_flow
from lensplug.analysis.attention_from import AttentionFrom as AttentionFrom
from lensplug.analysis.attention_from import attention_from as attention_from
from lensplug.analysis.attention_matrix import AttentionMatrix as AttentionMatrix
from lensplug.analysis.attention_matrix import attention_matrix as attention_matrix
from lensplug.analysis.attention_rollout import Rollout as Rollout
from lensplug.analysis.attention_rollout import attention_rollout as attention_rollout
from lensplug.analysis.compare import Comparison as Comparison
from lensplug.analysis.compare import compare as compare
from lensplug.analysis.deletion_curve import DeletionCurve as DeletionCurve
from lensplug.analysis.deletion_curve import deletion_curve as deletion_curve
from lensplug.analysis.gradient_rollout import gradient_rollout as gradient_rollout
from lensplug.analysis.head_readings import HeadSpecialization as HeadSpecialization
from lensplug.analysis.head_specialization import head_specialization as head_specialization
from lensplug.analysis.heads_by_layer import HeadsByLayer as HeadsByLayer
from lensplug.analysis.logit_lens import LogitLens as LogitLens
from lensplug.analysis.logit_lens import logit_lens as logit_lens
from lensplug.analysis.modality_ablation import Example as Example
from lensplug.analysis.modality_ablation import ModalityAblation as ModalityAblation
from lensplug.analysis.modality_ablation import modality_ablation as modality_ablation
from lensplug.analysis.received_attention import ReceivedAttention as ReceivedAttention
from lensplug.analysis.received_attention import received_attention as received_attention
