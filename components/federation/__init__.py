"""Component `federation`: all rounds in one task."""
