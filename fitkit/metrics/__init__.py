"""Metrics: statistics that are summed over batches and ranks, exact for a short last batch."""
