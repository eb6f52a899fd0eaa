"""What there is to choose from: tasks and models. Data only, no PyTorch."""
