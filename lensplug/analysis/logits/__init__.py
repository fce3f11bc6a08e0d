"""Analyses that unembed the residual stream."""
