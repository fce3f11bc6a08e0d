"""Analyses: pure functions, an ActivationCache in, a frozen result out. One idea per file.

None of them imports a model, an engine or a plotting library; each takes a cache that TransformerLens
made alone just as well, and says in `needs` which hooks it reads, for `names_filter`.
"""

import lazy_loader

# The names are listed once, with where they are, in `__init__.pyi`; a module is imported when one of its names is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
