"""From what users pass as data to batches whose position can be saved."""
