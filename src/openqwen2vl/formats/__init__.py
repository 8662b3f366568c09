"""What lies on disk: raw shards, packed shards, manifests, images, tokens and templates, errors."""
