"""What each position is, and how users select positions: modalities, indices, words, tokens, groups."""
