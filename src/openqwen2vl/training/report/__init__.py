"""A run's folder as one HTML page: what was learnt, how fast, from what, and what went wrong."""
