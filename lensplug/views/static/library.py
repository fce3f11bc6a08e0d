"""matplotlib, which is an extra: asked for before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from warnings import catch_warnings, filterwarnings

from lensplug.errors import LensplugError

STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a "$" of a token is a dollar sign
    "svg.fonttype": "none",  # text stays text: a browser has letters that matplotlib's font lacks
    "svg.hashsalt": "lensplug",  # the same figure gives the same picture
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "axes.unicode_minus": False,
    "axes.formatter.use_mathtext": False,
    "text.color": "#22252a",
    "axes.labelcolor": "#22252a",
    "xtick.color": "#22252a",
    "ytick.color": "#22252a",
}


def need_matplotlib() -> None:
    """Refuse where matplotlib is not installed.

    Raises:
        LensplugError: If it is not.
    """
    if find_spec("matplotlib") is None:
        raise LensplugError("pages without scripts are drawn with matplotlib: pip install 'lensplug[static]'.")


@contextmanager
def house_style() -> Iterator[None]:
    """The settings of matplotlib while a figure is drawn or written; the user's are put back."""
    need_matplotlib()
    import matplotlib

    with matplotlib.rc_context(), catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        filterwarnings("ignore", message="Glyph .* missing from")  # a browser finds another font
        yield
