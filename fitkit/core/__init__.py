"""Types and helpers that all other packages use; imports no other package of fitkit."""
