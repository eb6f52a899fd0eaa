"""The algorithm: losses (Eq 1-5), local updates, averaging (Eq 7), inference, simulation. Pure: no I/O, no clock, no global randomness."""
