"""The multimodal families of the installed transformers: which there are, a small one of each, its numbers."""
