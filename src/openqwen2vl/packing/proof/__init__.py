"""The proof that packing lost nothing: packs, ledger and manifest against the raw shards."""
