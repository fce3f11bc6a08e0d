"""Hugging Face models: the language core of a model, the seam before it, prompts and conversations."""
