"""The origin of a number: model, weights and versions."""
