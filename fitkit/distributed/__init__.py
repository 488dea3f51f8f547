"""Ranks: launchers, process groups, communication, and parallel strategies."""
