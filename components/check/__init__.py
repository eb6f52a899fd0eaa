"""Component `check`: everything wrong is found before anything expensive starts."""
