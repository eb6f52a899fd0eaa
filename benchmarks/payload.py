"""The payload of every round-time measurement, ours and the peers': weights of a ResNet20's size that nobody trains.

19 convolutions with weight, bias, mean and variance of a batch norm each, and a linear layer: 97 float32 tensors,
271,098 numbers, 1.084 MB. benchmarks/peers/ builds the same for NVFLARE and Flower, in environments without this package.
"""

from __future__ import annotations

import numpy as np

from fedhelp_core.weights.header import Weights

ARCHITECTURE = "benchmark-resnet20"
CONVOLUTIONS = [(16, 3, 3, 3)] + [(16, 16, 3, 3)] * 6 + [(32, 16, 3, 3)] + [(32, 32, 3, 3)] * 5 + [(64, 32, 3, 3)] + [(64, 64, 3, 3)] * 5


def payload() -> Weights:
    """The weights of round 0: random, so that nothing is spared by zeros."""
    generator = np.random.default_rng(1)
    shapes = {"fc.weight": (10, 64), "fc.bias": (10,)}
    for number, shape in enumerate(CONVOLUTIONS):
        shapes |= {f"conv{number}.weight": shape} | {f"norm{number}.{part}": shape[:1] for part in ("weight", "bias", "mean", "variance")}
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
