"""The round protocol: what hub and silos write to each other in a store."""
