"""Studies on real images: `make reproduce` and what it measures with."""
