"""Which position is what, and how a user says which: modalities, indices, words, tokens, groups."""
