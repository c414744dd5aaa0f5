"""Cameras and recordings: sources, decoder threads, the async face, frozen and blind pictures."""
