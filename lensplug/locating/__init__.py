"""Where positions lie in their medium, measured: parts of it are changed, and the embeddings that move are theirs."""
