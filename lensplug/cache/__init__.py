"""What a run leaves: TransformerLens's ActivationCache that knows its positions."""
