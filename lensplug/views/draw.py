"""The default view of a result, by its type: what a notebook displays."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import plotly.graph_objects as go

from lensplug.analysis.agreement import Agreement
from lensplug.analysis.attention.attention_flow import Flow
from lensplug.analysis.attention.attention_from import AttentionFrom
from lensplug.analysis.attention.attention_matrix import AttentionMatrix
from lensplug.analysis.attention.attention_rollout import Rollout
from lensplug.analysis.attention.found_sinks import Sinks
from lensplug.analysis.attention.gradient_rollout import GradientRollout
from lensplug.analysis.attention.head_readings import HeadSpecialization
from lensplug.analysis.attention.heads_by_layer import HeadsByLayer
from lensplug.analysis.attention.modality_null import ModalityNull
from lensplug.analysis.attention.received_attention import ReceivedAttention
from lensplug.analysis.attention.sink_share import SinkShare
from lensplug.analysis.attention.spatial_entropy import SpatialEntropy
from lensplug.analysis.compare import Comparison
from lensplug.analysis.group_differences import GroupDifferences
from lensplug.analysis.group_means import GroupMeans
from lensplug.analysis.interventions.activation_patching import ActivationPatching
from lensplug.analysis.interventions.attribution_patching import AttributionPatching
from lensplug.analysis.interventions.causal_tracing import CausalTracing
from lensplug.analysis.interventions.circuit_faithfulness import CircuitFaithfulness
from lensplug.analysis.interventions.deletion_curve import DeletionCurve
from lensplug.analysis.interventions.flow_result import InformationFlow
from lensplug.analysis.interventions.grounding import Grounding
from lensplug.analysis.interventions.modality_ablation import ModalityAblation
from lensplug.analysis.interventions.modality_interaction import ModalityInteraction
from lensplug.analysis.interventions.path_result import PathPatching
from lensplug.analysis.logits.direct_attribution_result import DirectAttribution
from lensplug.analysis.logits.logit_lens import LogitLens
from lensplug.analysis.neurons.domain_neurons import DomainNeurons
from lensplug.analysis.neurons.neuron_ablation import NeuronAblation
from lensplug.analysis.neurons.neuron_activity import NeuronActivity
from lensplug.analysis.probes.activations import Activations
from lensplug.analysis.probes.probe_result import Probe
from lensplug.analysis.regions.region_attribution_result import RegionAttribution
from lensplug.errors import LensplugError
from lensplug.views.figures.activation_patching import activation_patching
from lensplug.views.figures.activations import activations
from lensplug.views.figures.attention_by_layer import attention_by_layer
from lensplug.views.figures.attention_flow import attention_flow
from lensplug.views.figures.attention_matrix import attention_matrix
from lensplug.views.figures.attention_rollout import attention_rollout
from lensplug.views.figures.circuit_faithfulness import circuit_faithfulness
from lensplug.views.figures.comparison import comparison
from lensplug.views.figures.deletion_curve import agreement, deletion_curve
from lensplug.views.figures.direct_attribution import direct_attribution
from lensplug.views.figures.domain_neurons import domain_neurons
from lensplug.views.figures.grounding import grounding
from lensplug.views.figures.group_differences import group_differences
from lensplug.views.figures.group_means import group_means
from lensplug.views.figures.head_specialization import head_specialization
from lensplug.views.figures.heads_by_layer import heads_by_layer
from lensplug.views.figures.information_flow import information_flow
from lensplug.views.figures.logit_lens import logit_lens
from lensplug.views.figures.modality_ablation import modality_ablation
from lensplug.views.figures.modality_interaction import modality_interaction
from lensplug.views.figures.modality_null import modality_null
from lensplug.views.figures.neuron_ablation import neuron_ablation
from lensplug.views.figures.neuron_activity import neuron_activity
from lensplug.views.figures.path_patching import path_patching
from lensplug.views.figures.probe import probe
from lensplug.views.figures.received_attention import received_attention
from lensplug.views.figures.region_attribution import region_attribution
from lensplug.views.figures.settled_layers import SETTLED, settled_layers
from lensplug.views.figures.sinks import sink_share, sinks
from lensplug.views.figures.spatial_entropy import spatial_entropy


@singledispatch
def draw(result: Any) -> go.Figure:
    """The default figure of a result of `lensplug.analysis`.

    Raises:
        LensplugError: If there is no view for that type.
    """
    raise LensplugError(f"there is no view for a {type(result).__name__}.")


def _rollout(result: Rollout) -> go.Figure:
    return attention_rollout(result) if result.by_layer is None else attention_by_layer(result)


def _group_means(result: GroupMeans) -> go.Figure:
    is_settled = result.number == SETTLED and result.labels == ("entry",)
    return settled_layers(result) if is_settled else group_means(result)


draw.register(HeadSpecialization, head_specialization)
draw.register(HeadsByLayer, heads_by_layer)
draw.register(ModalityNull, modality_null)
draw.register(LogitLens, logit_lens)
draw.register(DirectAttribution, direct_attribution)
draw.register(Rollout, _rollout)
draw.register(GradientRollout, attention_rollout)
draw.register(Flow, attention_flow)
draw.register(AttentionMatrix, attention_matrix)
draw.register(AttentionFrom, attention_by_layer)
draw.register(ReceivedAttention, received_attention)
draw.register(Comparison, comparison)
draw.register(ModalityAblation, modality_ablation)
draw.register(CircuitFaithfulness, circuit_faithfulness)
draw.register(DeletionCurve, deletion_curve)
draw.register(Agreement, agreement)
draw.register(DomainNeurons, domain_neurons)
draw.register(Grounding, grounding)
draw.register(InformationFlow, information_flow)
draw.register(GroupMeans, _group_means)
draw.register(GroupDifferences, group_differences)
draw.register(NeuronAblation, neuron_ablation)
draw.register(NeuronActivity, neuron_activity)
draw.register(ActivationPatching, activation_patching)
draw.register(CausalTracing, activation_patching)
draw.register(AttributionPatching, activation_patching)
draw.register(PathPatching, path_patching)
draw.register(Activations, activations)
draw.register(Probe, probe)
draw.register(RegionAttribution, region_attribution)
draw.register(ModalityInteraction, modality_interaction)
draw.register(Sinks, sinks)
draw.register(SinkShare, sink_share)
draw.register(SpatialEntropy, spatial_entropy)
