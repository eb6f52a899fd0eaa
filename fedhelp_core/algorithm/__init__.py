"""The algorithm: losses (Eq 1-6), local updates, averaging (Eq 7), inference, simulation. Pure: no I/O, no clock, no global randomness."""
