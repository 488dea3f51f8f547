"""Files on disk: atomic writes, safe reads, folders of shards."""
