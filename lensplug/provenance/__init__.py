"""How a number was made: which model, which weights, which versions."""
