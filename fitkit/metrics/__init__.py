"""Metrics: sums that add up over batches, exact for a short last batch."""
