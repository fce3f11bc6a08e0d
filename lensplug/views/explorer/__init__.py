"""The explorer: a picture to point at."""
