"""What a person sees of a curated dataset: statistics of shards, token heat maps, one self-contained HTML file."""
