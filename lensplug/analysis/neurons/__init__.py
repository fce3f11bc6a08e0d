"""MLP neurons: how often they fire, and for what."""
