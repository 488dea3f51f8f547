"""The command line: looking at checkpoints and runs, and handling their files."""
