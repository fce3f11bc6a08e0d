"""Where positions lie in their medium, measured by a lens with its own processor and encoder."""

from __future__ import annotations

from collections.abc import Callable

from lensplug.errors import LensplugError
from lensplug.hf.run_lock import in_turn
from lensplug.inputs.multimodal_input import MultimodalInput, refuse_other_inputs
from lensplug.lens.wrapped_model import WrappedModel
from lensplug.locating.locate import locate
from lensplug.locating.located import Located
from lensplug.locating.resampled import resampled
from lensplug.locating.resampler_attention import ResamplerAttention
from lensplug.positions.modality_map import MediumName
from lensplug.validation.arguments import check_example, checked

KINDS: tuple[MediumName, ...] = ("image", "video", "audio")


class Locates(WrappedModel):
    """The methods of a lens that measure places."""

    @in_turn
    @checked
    def locate(
        self,
        inputs: MultimodalInput,
        *,
        kind: MediumName | None = None,
        media_index: int = 0,
        example: int = 0,
        stripes: int | None = None,
        batch: int = 8,
        progress: Callable[[str], None] = lambda step: None,
    ) -> Located:
        """Which part of a picture, video or sound each position sees, measured: for a family without geometry.

            located = lens.locate(inputs)
            print(located)                                  # resolution, how concentrated, blur, cost
            views.image_overlay(attention, located.inputs)  # "places measured" is said under the picture

        One stripe of the medium is changed at a time, before the processor; the embeddings that move see it. With the
        encoder's attention off that gives places to about a stripe; with it as it is, how far they are blurred.

        When to use it: `inputs.modality.image_grid()` is None, or to check one that is not (`located.agreement`). When
        not to: for the effect of a part on an answer, which is `analysis.region_attribution`.

        Args:
            inputs: From `prepare`, or from `encode` with their media.
            kind: "image", "video" or "audio"; needed where the example has several kinds.
            media_index: Which image, video or sound of the example.
            example: Which example.
            stripes: Into how many each side is cut; by default three for each position, 16 to 128. Cost: two runs of
                the encoder for each stripe of each side.
            batch: How many changed media go through the encoder at once.
            progress: Called with a few words before each batch.

        Raises:
            LensplugError: If the medium is not known, there are several kinds, no position moves, or most see no one
                place (a resampler's).
        """
        return locate(
            self.hf_model,
            self.core,
            self.processor,
            inputs,
            kind=_one_kind(inputs, kind, example, stripes, batch),
            media_index=media_index,
            example=example,
            stripes=stripes,
            batch=batch,
            progress=progress,
        )

    @in_turn
    @checked
    def resampler_attention(
        self,
        inputs: MultimodalInput,
        *,
        kind: MediumName | None = None,
        media_index: int = 0,
        example: int = 0,
        stripes: int | None = None,
        batch: int = 8,
        progress: Callable[[str], None] = lambda step: None,
    ) -> ResamplerAttention:
        """Where the positions that a resampler makes look in a picture, by the resampler's own cross-attention.

            through = lens.resampler_attention(inputs)
            views.image_overlay(attention, inputs, through=through)

        Positions of a Perceiver (Idefics2) or a Q-Former (BLIP-2, InstructBLIP) have no place of their own: each is
        made from all of a view. This gives the weights with which it is made from the states of the encoder, and, by
        changing one stripe of the picture at a time, where those states lie.

        When to use it: to see through which parts of a picture values of such positions were read. When not to: for
        positions that have a place (`inputs.modality.image_grid()`, `lens.locate`); for what an answer depends on
        (`analysis.region_attribution`): attention is not effect, here as little as in the decoder, and the states
        that it reads were mixed by the encoder's attention before.

        Args:
            inputs: From `prepare`, or from `encode` with their media.
            kind: "image", "video" or "audio"; needed where the example has several kinds.
            media_index: Which image, video or sound of the example.
            example: Which example.
            stripes: Into how many each side is cut to place the states; by default three for each, 16 to 128. Cost: a
                run of the encoder for each stripe of each side.
            batch: How many changed media go through the encoder at once.
            progress: Called with a few words before each batch.

        Raises:
            LensplugError: If the medium is not known, there are several kinds, or no resampler makes its positions.
        """
        return resampled(
            self.hf_model,
            self.core,
            self.processor,
            inputs,
            kind=_one_kind(inputs, kind, example, stripes, batch),
            media_index=media_index,
            example=example,
            stripes=stripes,
            batch=batch,
            progress=progress,
        )


def _one_kind(
    inputs: MultimodalInput, kind: MediumName | None, example: int, stripes: int | None, batch: int
) -> MediumName:
    """The kind that is meant, where the other arguments can be right."""
    refuse_other_inputs(inputs)
    check_example(example, len(inputs))
    if stripes is not None and stripes < 2:
        raise LensplugError(f"stripes is {stripes}, expected at least 2.")
    if batch < 1:
        raise LensplugError(f"batch is {batch}, expected at least 1.")
    present = [name for name in KINDS if bool(inputs.modality.mask(name)[example].any())]
    if kind is None and len(present) != 1:
        found = f"has {', '.join(present)}: say which with kind=" if present else "has no image, video or sound"
        raise LensplugError(f"example {example} {found}.")
    return kind or present[0]
