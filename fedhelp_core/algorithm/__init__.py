"""The algorithm: losses (Eq 1-5; of voxels Eq 6), local updates, averaging (Eq 7), inference, simulation. Pure: no I/O, no clock, no global randomness."""
