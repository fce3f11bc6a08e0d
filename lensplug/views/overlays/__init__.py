"""Values drawn over the picture, video, sound or signal that they are about."""
