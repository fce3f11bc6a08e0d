"""Files that lensplug writes."""
