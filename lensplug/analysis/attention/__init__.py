"""Analyses that read attention patterns."""
