"""Finding and describing the checkpoints of a folder."""
