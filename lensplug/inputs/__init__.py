"""The input of a core: `MultimodalInput`, and what is derived from it."""
