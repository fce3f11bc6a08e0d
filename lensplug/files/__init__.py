"""Files that lensplug writes: whole or not at all, never through another user's link, refused before work is lost."""
