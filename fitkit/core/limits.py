"""Limits of what a checkpoint holds."""

MAX_DEPTH = 100  # of nested containers
