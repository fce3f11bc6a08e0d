"""Figures: one for each kind of result."""
