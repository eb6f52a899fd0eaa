"""Component `aggregation`: close round after round."""
