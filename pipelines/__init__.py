"""The two graphs, their compilation, and their local run."""
