"""The source code of a model: collected, stored and imported again."""
