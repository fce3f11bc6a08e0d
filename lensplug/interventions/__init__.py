"""Interventions: frozen edits of a run, which cut, steer, replace and ablate where they say, and nowhere else.

    from lensplug.interventions import Knockout, Steer

    with lens.intervene(Knockout(from_="image", to="last", layers=range(2, 5))):
        lens.generate(inputs).text

One idea per file; each edit says what is changed, in which layers, heads, positions.
"""

import lazy_loader

# The names are listed once, with where they are, in `__init__.pyi`; a module is imported when one of its names is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
