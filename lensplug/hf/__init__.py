"""What is Hugging Face's: the language core of a model, the seam before it, prompts and conversations."""
