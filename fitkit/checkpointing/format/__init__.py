"""What is in a checkpoint: keys, encoding of values, class names."""
