"""Component `soft_label_prefetch`: teachers asked once."""
