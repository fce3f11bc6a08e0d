"""Figures of the views without a script: drawn with matplotlib, as pictures that a page holds (extra `static`)."""
