"""Patches for HookedTransformer."""

from lensplug.patches.hooked_transformer import names as names  # first: it says so where there is no HookedTransformer
