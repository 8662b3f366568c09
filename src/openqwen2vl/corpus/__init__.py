"""The embedded corpus and its held-out questions, drawn from a seed."""
