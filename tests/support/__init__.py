"""What tests share: models, caches, media and numbers that were made elsewhere."""
