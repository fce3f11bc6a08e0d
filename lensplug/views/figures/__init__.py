"""Figures: one module per analysis, named after it."""
