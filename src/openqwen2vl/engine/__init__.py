"""Maps pure per-shard functions over processes, with progress and restart."""
