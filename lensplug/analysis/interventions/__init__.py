"""Analyses that change what a core receives or computes, and run it again."""
