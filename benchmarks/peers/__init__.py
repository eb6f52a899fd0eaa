"""Other federated-learning systems on benchmarks/payload.py's payload, each in a virtual environment of its own."""
