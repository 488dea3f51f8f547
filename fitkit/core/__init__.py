"""The words that every other package uses; it imports nothing of ours."""
