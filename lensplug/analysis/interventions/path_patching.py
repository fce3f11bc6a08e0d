"""Path patching: what a head passes on to a later head directly, and not through other heads.

Method, for a sender (a head, or an MLP) and receivers (the queries, keys or values of later heads, or the logits):

1. Run both prompts, and cache what heads and MLPs give: of the corrupt prompt z, of the clean one what senders give.
2. Run the corrupt prompt with the sender as in the clean run, and every other attention head (z) as in the corrupt
   run. MLPs are computed, so that a path may lead through them (`mlps="frozen"`: the residual stream alone), norms
   always. Note the query, key or value of the receivers; if logits receive, these are what is measured.
3. Run the corrupt prompt with the receivers' query, key or value as noted, and all else free.
4. recovered = (m_patched - m_corrupt) / (m_clean - m_corrupt), m the target, as in `activation_patching`.

The papers put the corrupt sender into the clean run: swap the two prompts. With them swapped, `recovered` is the share
of the effect that is lost without the path. A sender's change at a position reaches receivers at that position only:
`by="sender_and_position"` chooses both.

Papers: Wang et al. 2023, "Interpretability in the Wild", arXiv 2211.00593, appendix B (heads frozen, MLPs computed);
Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching", arXiv 2304.05969.

When to use it: to take a circuit apart, from the end: which heads act on the logits (receiver="logits"), which heads
act on these, through what they look for (q), are found by (k), or hand on (v). Next to `activation_patching` of the
same head, which measures all of its paths together.

When not to use it: to search all pairs of heads of a deep model. Each sender costs about a run from its layer on, and
each receiver another from its own. A path that matters only together with another has no effect alone. Where a norm
follows attention (Gemma), it is computed anew of the sender's and all other heads' output together.

Example:
    question = "What is the color? Answer single word."
    red, blue = (lens.prepare(question, images=[image]) for image in (picture, other_picture))
    ends = analysis.path_patching(lens, red, blue, ("Red", "Blue"), progress=False)
    ends.recovered                                 # [example receiver layer group head]
    views.path_patching(ends)                      # layer x head
    read = analysis.path_patching(lens, red, blue, ("Red", "Blue"), receiver="v", heads=[(3, 0), (3, 1)])
    views.path_patching(read, receiver=0)
"""

from __future__ import annotations

import torch
from tqdm.auto import tqdm

from lensplug.analysis.attention.cached_mixing import layer_range
from lensplug.analysis.attention.resolve_groups import Merge
from lensplug.analysis.interventions.direct_paths import DirectPaths, MLPs, Senders, mlp_of, z_of
from lensplug.analysis.interventions.measured_target import rounding_of
from lensplug.analysis.interventions.patched_places import Places, patched_groups
from lensplug.analysis.interventions.path_receivers import Receiver, ReceiverHeads, ReceiverKind, receivers_of
from lensplug.analysis.interventions.path_result import PathPatching, SenderPlaces
from lensplug.analysis.interventions.source_run import source_run
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance
from lensplug.errors import LensplugError
from lensplug.inputs.logit_targets import Target
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.groups import Groups
from lensplug.validation.arguments import at_least, checked


@checked
def path_patching(
    lens: Lens,
    clean: MultimodalInput,
    corrupt: MultimodalInput,
    target: Target,
    *,
    receiver: ReceiverKind = "logits",
    heads: ReceiverHeads = None,
    senders: Senders = "heads",
    mlps: MLPs = "computed",
    by: SenderPlaces = "sender",
    groups: Merge = None,
    layers: tuple[int, int] | None = None,
    position: int = -1,
    batch: int | None = None,
    progress: bool = True,
) -> PathPatching:
    """Patch one direct path after another: from each sender to each receiver.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        clean: Inputs of `prepare` or `encode`; one example or several.
        corrupt: As many, pairwise with the same places for text and media.
        target: What is measured, as for `activation_patching`.
        receiver: "q", "k" or "v" of `heads`, or "logits": the residual stream behind the last layer.
        heads: Those that receive, pairs (layer, head), each a receiver of its own; or `{"movers": [(2, 0), (3, 1)]}`:
            names, and heads that receive together. Where query heads share keys and values, "k" and "v" count
            key-value heads.
        senders: "heads", or "mlps": the MLP of each layer.
        mlps: What MLPs between sender and receiver do: "computed" of the changed stream, or "frozen" at the corrupt
            run.
        by: "sender": at all positions; "sender_and_position": at one group of positions at a time.
        groups: Positions of a sender that are patched together, by "sender_and_position", as for `activation_patching`.
        layers: The first and the last layer of senders; by default all that have a path.
        position: Where a token's logit is read; negative ones count from the last that is not padding.
        batch: How many senders of a layer are run side by side; None: as many as fit into half of the free memory, and
            no more than make it faster.
        progress: Show a bar in a terminal or notebook.

    Returns:
        The target with each path patched, and the share of the effect that it recovers.

    Raises:
        LensplugError: If the positions cannot be aligned, the target is not exactly one token, a head is not there, or
            no sender is before a receiver.
    """
    at_least(1, batch=1 if batch is None else batch)
    model, cfg = lens.model, lens.model.cfg
    receiving = receivers_of(heads, receiver, cfg)
    chosen = _sender_layers(layers, receiving, cfg.n_layers)
    merged = _groups(groups, by, corrupt)
    sending = [(z_of if senders == "heads" else mlp_of)(layer) for layer in chosen]
    stop = cfg.n_layers if receiver == "logits" else max(each.layers[-1] for each in receiving)
    held = [z_of(layer) for layer in range(chosen[0], stop)]
    if mlps == "frozen" or senders == "mlps":
        held += [mlp_of(layer) for layer in range(chosen[0], stop)]
    source = source_run(lens, clean, corrupt, target, position, sending)
    base = source_run(lens, corrupt, corrupt, target, position, held)
    n_heads = cfg.n_heads if senders == "heads" else 1
    places = Places(torch.stack([of_example.of_position for of_example in merged]), n_heads)
    with lens.edited_runs(corrupt, base.measured.rows, batch=batch) as runs:
        value_of_corrupt = base.measured(runs.unedited)
        paths = DirectPaths(
            runs=runs, base={name: base.cache[name] for name in held}, sent=source.at_places, places=places,
            measured=base.measured, receivers=receiving, kind=receiver, senders=senders, mlps=mlps,
            n_layers=cfg.n_layers,
        )  # fmt: skip
        total = len(places.of_a_layer) * sum(map(paths.n_passes, chosen))
        with tqdm(total=total, unit="run", disable=None if progress else True) as bar:
            tables = [paths.of_layer(layer, bar.update) for layer in chosen]
    return PathPatching(
        values=torch.stack([places.laid_out(column) for column in zip(*tables, strict=True)], dim=1),
        clean=source.value,
        corrupt=value_of_corrupt,
        rounding=rounding_of(cfg, source.measured, base.measured),
        groups=places.groups,
        labels=tuple(tuple(of_example.names) for of_example in merged),
        layers=tuple(chosen),
        receivers=tuple(each.name for each in receiving),
        receiver_heads=tuple(each.heads for each in receiving),
        receiver=receiver,
        senders=senders,
        by=by,
        mlps=mlps,
        provenance=Provenance.of_model(
            model,
            "path_patching",
            f"clean {senders} into {receiver} of the corrupt run by {by}, other heads frozen, MLPs {mlps},"
            f" {source.measured.in_words}",
        ),
    )


def _sender_layers(layers: tuple[int, int] | None, receivers: list[Receiver], n_layers: int) -> list[int]:
    """The layers of senders.

    Raises:
        LensplugError: If no sender there has a path.
    """
    chosen = list(layer_range(layers, n_layers))
    behind = [layer for layer in chosen if any(receiver.is_behind(layer) for receiver in receivers)]
    if not behind:
        raise LensplugError(
            f"layers={layers}: no receiver is behind layer {chosen[0]}, so that no sender has a path; the receivers are"
            f" {', '.join(receiver.name for receiver in receivers)}."
        )
    return behind


def _groups(groups: Merge, by: SenderPlaces, corrupt: MultimodalInput) -> list[Groups]:
    """The positions of a sender that are patched together, of each example.

    Raises:
        LensplugError: If there are groups, and senders are patched at all positions.
    """
    if by == "sender" and groups is not None:
        raise LensplugError("by='sender' patches all positions: leave groups out, or use by='sender_and_position'.")
    return patched_groups(groups, "head" if by == "sender" else "head_and_position", corrupt)
