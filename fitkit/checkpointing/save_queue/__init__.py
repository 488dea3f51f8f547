"""How the requests of savers become files: at once or in a thread, on one rank or several."""
