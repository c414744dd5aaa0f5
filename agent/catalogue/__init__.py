"""Models that can be fetched, those that are there, and the way from one to the other."""
