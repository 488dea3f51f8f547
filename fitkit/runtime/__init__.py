"""The machine: processes, devices, precision, random streams, signals."""
