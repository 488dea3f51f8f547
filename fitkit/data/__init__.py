"""Turns user data into sources of batches whose position can be saved."""
