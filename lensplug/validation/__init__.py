"""Checks of arguments against what is expected, with readable errors."""
