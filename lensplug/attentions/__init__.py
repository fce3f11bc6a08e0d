"""Attentions of any Hugging Face model as a cache."""
