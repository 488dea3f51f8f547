"""The loop. It knows events, not callbacks; parts reach it as arguments."""
