"""The handler: what it holds, how its state becomes a checkpoint and back."""
