"""What direct paths carry: the result of path patching."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.interventions.between_prompts import BetweenPrompts
from lensplug.analysis.interventions.direct_paths import MLPs, Senders
from lensplug.analysis.interventions.path_receivers import ReceiverKind
from lensplug.analysis.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd

SenderPlaces = Literal["sender", "sender_and_position"]
"""What is patched at a time: a sender at all positions, or at a position or group of positions."""


@dataclass(frozen=True, repr=False)
class PathPatching(BetweenPrompts):
    """The target between its value of the corrupt prompt and that of the clean one, by receiver and sender.

    `recovered` is what the path alone brings, `layers` are those of the senders.
    """

    label_columns = ("example", "receiver", "layer", "group", "label", "head")
    main_number = "recovered"
    example_depth = {"labels": 0}

    values: Float[Tensor, "example receiver layer group head"]
    """The target with the path from this sender patched; NaN where there is no path, or an example has no such group.
    Of MLPs the last axis has one entry."""
    receivers: tuple[str, ...]
    """Their names: "2.1" is head 1 of layer 2."""
    receiver_heads: tuple[tuple[tuple[int, int], ...], ...]
    """The heads of each receiver, pairs (layer, head); none: the logits."""
    receiver: ReceiverKind
    senders: Senders
    by: SenderPlaces
    mlps: MLPs
    provenance: Provenance

    @property
    def change(self) -> Float[Tensor, "example receiver layer group head"]:
        """The target with the path patched, minus that of the corrupt prompt."""
        return self.values - self.corrupt[:, None, None, None, None]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, receiver, layer, group and head with a path; head -1 is the layer's MLP."""
        import pandas as pd

        recovered = self.recovered
        examples, receivers, layers, _, heads = self.values.shape
        return pd.DataFrame(
            {
                "example": example,
                "receiver": self.receivers[receiver],
                "layer": self.layers[layer],
                "group": group,
                "label": self.labels[example][group],
                "head": -1 if self.senders == "mlps" else head,
                "value": float(self.values[example, receiver, layer, group, head]),
                "recovered": float(recovered[example, receiver, layer, group, head]),
            }
            for example, receiver, layer in product(range(examples), range(receivers), range(layers))
            if self.has_path(receiver, self.layers[layer])
            for group, head in product(self.groups_of(example), range(heads))
        )

    def has_path(self, receiver: int, layer: int) -> bool:
        """Whether senders of a layer have a path to a receiver, by its number."""
        heads = self.receiver_heads[receiver]
        return not heads or layer < max(at for at, _ in heads)
