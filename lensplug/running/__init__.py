"""Running a core: what is kept, gradients, answers, memory, and the comparison with the full model."""
