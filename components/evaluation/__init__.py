"""Component `evaluation`: scores, the registered candidate, the report."""
