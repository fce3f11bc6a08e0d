"""Items of a layout, over and under the traces: images, shaded stretches, lines across, annotations."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from typing import Any

import plotly.graph_objects as go

from lensplug.errors import LensplugError
from lensplug.views.static.plotly_values import PIXEL, plain, rgba


def draw_image(ax: Any, image: Any) -> None:
    """A picture of the layout, under the traces; axes that run down have its top above."""
    import numpy as np
    from PIL import Image

    if not str(image.source).startswith("data:image/") or image.sizing != "stretch":
        raise LensplugError("a static picture draws pictures that are part of the figure, stretched.")
    with Image.open(BytesIO(b64decode(str(image.source).partition(",")[2]))) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    extent = (image.x, image.x + image.sizex, image.y + image.sizey, image.y)
    ax.imshow(pixels, extent=extent, origin="upper", zorder=0, aspect=ax.get_aspect(), interpolation="antialiased")


def draw_shape(ax: Any, shape: Any) -> None:
    """A shaded rectangle or a line, in the numbers of its axes or across all of them."""
    across, down = str(shape.xref).endswith("domain"), str(shape.yref).endswith("domain")
    line = {
        "color": rgba(shape.line.color or "#22252a"),
        "linewidth": (2 if shape.line.width is None else shape.line.width) * PIXEL,
    }
    if shape.type == "rect" and down and not across:
        ax.axvspan(shape.x0, shape.x1, color=rgba(shape.fillcolor, shape.opacity), linewidth=0, zorder=4)
    elif shape.type == "line" and across and not down and shape.y0 == shape.y1:
        ax.axhline(shape.y0, linestyle={"dot": ":", "dash": "--"}.get(shape.line.dash, "-"), zorder=4, **line)
    elif shape.type == "line" and down and not across and shape.x0 == shape.x1:
        ax.axvline(shape.x0, linestyle={"dot": ":", "dash": "--"}.get(shape.line.dash, "-"), zorder=4, **line)
    else:
        raise LensplugError(f"a static picture cannot draw a {shape.type} from {shape.xref} and {shape.yref}.")


def draw_annotation(figure: Any, axes: dict[tuple[str, str], Any], note: Any, place: Any) -> None:
    """Words at a place: of a pair of axes, or of the whole plot."""
    if note.showarrow:
        raise LensplugError("a static picture cannot draw an arrow.")
    text_style = {
        "fontsize": (note.font.size or 12) * PIXEL, "parse_math": False, "zorder": 6,
        "ha": {"left": "left", "right": "right"}.get(note.xanchor, "center"),
        "va": {"top": "top", "bottom": "bottom"}.get(note.yanchor, "center"),
    }  # fmt: skip
    if note.xref == "paper" and note.yref == "paper":
        figure.text(*place(note.x, note.y), plain(note.text), **text_style)
        return
    name = str(note.xref).split(" ")[0], str(note.yref).split(" ")[0]
    if name not in axes:
        raise LensplugError(f"a static picture cannot place words at {note.xref} and {note.yref}.")
    ax = axes[name]
    from matplotlib.transforms import blended_transform_factory

    sides = [ax.transAxes if str(ref).endswith("domain") else ax.transData for ref in (note.xref, note.yref)]
    ax.text(note.x, note.y, plain(note.text), transform=blended_transform_factory(*sides), **text_style)


def names_of(shape: Any) -> tuple[str, str]:
    """The pair of axes of a shape or picture of the layout."""
    return str(shape.xref or "x").split(" ")[0], str(shape.yref or "y").split(" ")[0]


def images_of(layout: go.Layout) -> list[Any]:
    """The pictures that are shown."""
    return [image for image in layout.images if image.visible is not False]
