"""Activations of a data set, in memory or in files, read one layer at a time.

A file is opened once to learn shapes and how it was made, and once for each layer, of which safetensors reads this part
alone. So a data set of any number of layers needs the memory of one: examples x width x 4 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lensplug.analysis.probes.activations import Activations
from lensplug.analysis.provenance import Provenance, refuse_other_making
from lensplug.analysis.saved_results import outline
from lensplug.errors import LensplugError
from lensplug.files.destinations import expanded

Source = Activations | str | Path
"""Activations, or a file of them."""


@dataclass(frozen=True)
class Collected:
    """Activations of several batches as one data set."""

    sources: tuple[Source, ...]
    outlines: tuple[Activations, ...]
    """Of each source; of a file without its numbers."""

    @classmethod
    def of(cls, activations: Source | Sequence[Source]) -> Collected:
        """The data set of one or several results or files, in this order.

        Raises:
            LensplugError: If there is none, one is given twice, a file holds something else, or they were not made
                alike.
        """
        is_single = isinstance(activations, Activations | str | Path)
        sources: tuple[Source, ...] = (activations,) if is_single else tuple(activations)  # type: ignore[assignment,arg-type]
        if not sources:
            raise LensplugError("there are no activations: give results of analysis.activations, or files of them.")
        _refuse_twice(sources)
        outlines = tuple(_outline(source) for source in sources)
        refuse_other_making(outlines)
        first = outlines[0]
        for index, other in enumerate(outlines):
            if other.layers != first.layers or other.vectors.shape[1:] != first.vectors.shape[1:]:
                raise LensplugError(
                    f"activations {index} (counted from 0) are {list(other.vectors.shape[1:])} of the layers"
                    f" {list(other.layers)}, the first {list(first.vectors.shape[1:])} of {list(first.layers)}: collect"
                    " them with the same options."
                )
        return cls(sources, outlines)

    @property
    def count(self) -> int:
        """How many examples there are."""
        return sum(len(part.vectors) for part in self.outlines)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, as they were collected."""
        return self.outlines[0].layers

    @property
    def by_head(self) -> bool:
        """Whether there is a vector for each head."""
        return self.outlines[0].vectors.ndim == 4

    @property
    def provenance(self) -> Provenance:
        """How the first was made, and all others."""
        return self.outlines[0].provenance

    def layer(self, index: int) -> Float32[np.ndarray, "sample head d_act"]:
        """The vectors of one layer, the index counted in `layers`, in fp32; of the stream with one head.

        Raises:
            LensplugError: If a number is not finite, or a file is no longer what it was.
        """
        shape = self.outlines[0].vectors.shape[2:]
        heads, width = shape if self.by_head else (1, *shape)
        values = np.empty((self.count, heads, width), dtype=np.float32)
        start = 0
        for source, part in zip(self.sources, self.outlines, strict=True):
            vectors = _vectors(source, part, index)
            stop = start + len(vectors)
            values[start:stop] = vectors.to(torch.float32).reshape(len(vectors), heads, width).numpy()
            start = stop
        finite = np.isfinite(values).all(axis=(1, 2))
        if not finite.all():
            raise LensplugError(
                f"the activations of layer {self.layers[index]} hold NaN or infinity in {int((~finite).sum())} of"
                f" {self.count} examples, the first is example {int((~finite).argmax())}: use bfloat16 or float32 (fp16"
                " ends at 65,504)."
            )
        return values

    def means(self, weights: Float[Tensor, " example"]) -> list[Float32[Tensor, "*head d_act"]]:
        """For each layer, the mean over the examples with these weights, summed in fp64."""
        shares = (weights / weights.sum()).double()
        layers = (torch.from_numpy(self.layer(index)).double() for index in range(len(self.layers)))
        each = (torch.einsum("e,ehd->hd", shares, vectors) for vectors in layers)
        return [(mean if self.by_head else mean[0]).float() for mean in each]


def _refuse_twice(sources: Sequence[Source]) -> None:
    """The same examples would be in training and test at once."""
    seen = set()
    for source in sources:
        key = id(source) if isinstance(source, Activations) else expanded(source).resolve()
        if key in seen:
            what = "a result" if isinstance(source, Activations) else repr(str(source))
            raise LensplugError(f"{what} is given twice, and a probe would be tested on what it was trained on.")
        seen.add(key)


def _outline(source: Source) -> Activations:
    if isinstance(source, Activations):
        return source
    found = outline(source)
    if not isinstance(found, Activations):
        raise LensplugError(f"{str(source)!r} holds a {type(found).__name__}, expected Activations.")
    return found


def _vectors(source: Source, part: Activations, index: int) -> Tensor:
    """The vectors of one layer of a source."""
    if isinstance(source, Activations):
        return source.vectors[:, index]
    try:
        with safe_open(str(expanded(source)), "pt") as file:
            stored = file.get_slice("vectors")
            if tuple(stored.get_shape()) != tuple(part.vectors.shape):
                raise LensplugError(f"{str(source)!r} was changed while it was read.")
            vectors: Tensor = stored[:, index]
            return vectors
    except (OSError, SafetensorError) as error:
        raise LensplugError(f"{str(source)!r} can no longer be read: {error}.") from error
