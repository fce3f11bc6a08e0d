"""Overlays: values per position drawn over the image, video, sound or signal."""
