"""What a run was: gathered as plain data out of its files or itself, and shown as one page."""
