"""Networks of the registry as PyTorch modules."""
