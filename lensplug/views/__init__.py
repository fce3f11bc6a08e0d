"""Pictures: a result in, a figure or a widget out. The only place that imports plotly and CircuitsVis.

plotly draws what CircuitsVis has no component for (layer x head, layer x position, images, sounds); CircuitsVis
draws attention between tokens. Everything a view returns is self-contained: nothing is loaded from a
network, and the text of tokens is escaped.
"""

import lazy_loader

# The names are listed once, with where they are, in `__init__.pyi`; a module is imported when one of its names is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
