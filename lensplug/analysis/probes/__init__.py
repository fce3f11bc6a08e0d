"""Probes: classifiers of what activations hold."""
