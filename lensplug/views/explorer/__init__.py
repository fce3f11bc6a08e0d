"""The explorer: an interactive page about one image."""
