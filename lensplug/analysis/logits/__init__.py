"""Analyses that read the residual stream in words."""
