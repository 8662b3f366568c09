"""Scorers: each gives every sample of a shard a few figures, one file a scorer."""
