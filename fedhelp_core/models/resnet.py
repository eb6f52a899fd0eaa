"""ResNets for small images: the CIFAR family of He et al. 2016 (arXiv 1512.03385, section 4.2), depth 6n + 2.

Three stages of n blocks with 16, 32 and 64 channels; shortcuts across stages subsample and pad with zero channels
(option A), so they have no parameters. ResNet20 has 0.27 M parameters, ResNet110 1.7 M. Called by the model registry.

Shapes: B batch, C channels, H height, W width, F features (64), K outputs.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

FEATURES = 64


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a parameter-free shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.padding = channels_out - channels_in

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H / stride, W / stride)."""
        shortcut = x_BCHW
        if self.stride != 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.padding:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding // 2, self.padding - self.padding // 2))
        out = functional.relu(self.norm1(self.conv1(x_BCHW)), inplace=True)
        out = self.norm2(self.conv2(out))
        return functional.relu(out + shortcut, inplace=True)


class Backbone(nn.Module):
    """θ of docs/algorithm.md: images (B, C, H, W) float -> features (B, 64)."""

    def __init__(self, depth: int, in_channels: int) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth: 6n + 2 expected (8, 14, 20, ..., 110), got {depth}")
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.stage1 = _stage(blocks, 16, 16, stride=1)
        self.stage2 = _stage(blocks, 16, 32, stride=2)
        self.stage3 = _stage(blocks, 32, FEATURES, stride=2)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) float32 -> (B, 64) float32."""
        out = functional.relu(self.norm(self.conv(images_BCHW)), inplace=True)
        out = self.stage3(self.stage2(self.stage1(out)))
        features_BF: Tensor = out.mean(dim=(2, 3))
        return features_BF


def _stage(blocks: int, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))


class Classifier(nn.Module):
    """A backbone θ and a head h: images (B, C, H, W) -> logits (B, K)."""

    def __init__(self, depth: int, outputs: int, in_channels: int) -> None:
        super().__init__()
        self.backbone = Backbone(depth, in_channels)
        self.head = nn.Linear(FEATURES, outputs)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) float32 -> logits (B, K) float32."""
        logits: Tensor = self.head(self.backbone(images_BCHW))
        return logits
