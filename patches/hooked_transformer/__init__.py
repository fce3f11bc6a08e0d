"""Patches for HookedTransformer."""
