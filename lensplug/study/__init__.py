"""Studies: measurements of one model on many examples, in a folder that outlives the process."""

import lazy_loader

# The names are listed once, with where they are, in `__init__.pyi`; a module is imported when one of its names is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
