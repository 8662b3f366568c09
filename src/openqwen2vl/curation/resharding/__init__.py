"""Resharding: kept samples written into balanced, shuffled shards with their original bytes."""
