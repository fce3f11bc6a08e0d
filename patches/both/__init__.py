"""Patches for either engine."""
