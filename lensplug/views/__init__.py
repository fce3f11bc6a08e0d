"""Views: each takes a result and returns a figure or a widget. Only this folder imports plotly and CircuitsVis.

plotly draws what CircuitsVis has no component for (layer x head, layer x position, images, sounds); CircuitsVis
draws attention between tokens. Everything a view returns is self-contained: nothing is loaded from a
network, and the text of tokens is escaped.
"""

import lazy_loader

# The public names and their modules are listed once, in `__init__.pyi`; a module is imported when a name is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
