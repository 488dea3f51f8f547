"""The report of a run as one HTML page: its data, from files or a live run, and its rendering."""
