"""Curation: raw shards scored, selected, freed of duplicates and written anew."""
