"""Regions of a picture, of a sound or of the words, blanked one by one and together: what does each contribute?"""
