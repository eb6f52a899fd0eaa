"""Component `promotion`: the gate between candidate and champion."""
