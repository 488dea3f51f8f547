"""The machine: devices, memory, precision, random streams, signals, logging."""
