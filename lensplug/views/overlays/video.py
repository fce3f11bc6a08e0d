"""Values on video tokens, drawn over the frames."""

from __future__ import annotations

import plotly.graph_objects as go
import torch

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.media import load_video
from lensplug.validation.arguments import checked
from lensplug.views.overlays.image import why_no_grid
from lensplug.views.overlays.overlay import (
    SIDE,
    add_buttons,
    add_scales,
    below,
    heat,
    lay_out,
    say_measured,
    scales_of,
    slider,
)
from lensplug.views.overlays.rows import Rows, rows_at
from lensplug.views.overlays.unseen import hatched, say_hatched
from lensplug.views.style import figure


@checked
def video_overlay(
    values: Rows,
    inputs: MultimodalInput,
    *,
    video: object = None,
    media_index: int = 0,
    example: int = 0,
    title: str = "Over the frames",
) -> go.Figure:
    """A heat map of any value per position over each frame: a slider for frames, a menu if there are several rows.

    All frames and rows share one color scale, so that the slider compares them; a button gives each row its own. What
    no position sees of a frame is hatched.

    Args:
        values: As for `image_overlay`.
        inputs: The inputs that were analysed.
        video: The video, as `lens.prepare` takes it; not needed if `prepare` received it.
        media_index: Which video of the example.
        example: Which example.
        title: Title of the figure.

    Raises:
        LensplugError: If the video has no grid, its frames are not available, or there is not one value per
            position.
    """
    grid = inputs.modality.video_grid(media_index, example)
    if grid is None:
        raise LensplugError(
            f"this video has no grid, so its tokens cannot be placed in it: {why_no_grid(inputs, 'video')}."
        )
    if video is None and not inputs.videos:
        raise LensplugError("the frames are not known (encode keeps none unless they are given): give video=.")
    frames = load_video(inputs.videos[example][media_index] if video is None else video)
    if (len(frames), frames.height, frames.width) != (grid.n_frames, grid.height, grid.width):
        raise LensplugError(
            f"the video has {len(frames)} frames of {(frames.width, frames.height)} pixels, the grid is of one of"
            f" {grid.n_frames} frames of {(grid.width, grid.height)}."
        )
    rows = rows_at(values, inputs, inputs.modality.video_positions(media_index, example), example=example)
    traces, of_frame, of_row = [], [], []
    row_scales, shared_scale = scales_of([row[grid.frame >= 0] for row in rows.values()])
    for index, row in enumerate(rows.values()):
        for frame in range(grid.n_frames):
            cells = grid.image_grid(frame).to_cells(row[grid.tokens_of_frame(frame)])
            traces.append(heat(cells, visible=frame == 0, shown=index == 0, scale=shared_scale))
            of_frame.append(frame)
            of_row.append(index)
    scale = SIDE / max(grid.width, grid.height)
    fig = figure(*traces, title=title, height=int(grid.height * scale) + 180, width=int(grid.width * scale) + 130)
    lay_out(fig, grid.width, grid.height)
    any_hatched = False
    for frame in range(grid.n_frames):
        picture = frames.image(frame)
        shown = hatched(picture, grid.image_grid(frame))
        any_hatched = any_hatched or shown is not picture
        fig.add_layout_image(below(shown, grid.width, grid.height, visible=frame == 0))
    if any_hatched:
        say_hatched(fig)
    times = frames.times_s if frames.times_s is not None else torch.full((grid.n_frames,), torch.nan)
    names = [f"{frame}" if time != time else f"{frame} ({time:.1f} s)" for frame, time in enumerate(times.tolist())]
    pictures = [{f"images[{i}].visible": i == frame for i in range(grid.n_frames)} for frame in range(grid.n_frames)]
    fig.update_layout(
        sliders=[{**slider(names, of_frame, pictures), "currentvalue": {"prefix": "frame "}}], margin={"l": 30}
    )
    if len(rows) > 1:
        add_buttons(fig, list(rows), of_row)
        add_scales(fig, shared_scale, [row_scales[row] for row in of_row])
    say_measured(fig, grid.measured, "px")
    return fig
