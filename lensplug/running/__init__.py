"""Running a core: caching, gradients, generation, memory, and the parity check with the full model."""
