"""Weights of a ResNet20's size: 97 float tensors, no integer counters."""

import torch
from torch import nn

CONVOLUTIONS = [(16, 3, 3, 3)] + [(16, 16, 3, 3)] * 6 + [(32, 16, 3, 3)] + [(32, 32, 3, 3)] * 5 + [(64, 32, 3, 3)] + [(64, 64, 3, 3)] * 5


class Payload(nn.Module):
    """Never called, only sent."""

    def __init__(self):
        super().__init__()
        for number, shape in enumerate(CONVOLUTIONS):
            self.register_parameter(f"conv{number}", nn.Parameter(torch.randn(shape)))
            for part in ("weight", "bias", "mean", "variance"):
                self.register_parameter(f"{part}{number}", nn.Parameter(torch.randn(shape[0])))
        self.fc = nn.Linear(64, 10)
