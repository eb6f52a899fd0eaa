"""MONAI's U-Nets, cut into a backbone and a head so that a public head can share the backbone (Eq 2). Called by the model registry.

Batch norms, so that `normalisation` means the same as in classification. Sides must be multiples of 2 to the number of halvings.
Shapes: B batch, C channels, H and W spatial sides (D, H, W in three dimensions), K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedhelp_core.lean_monai import ADN, UNet


class Segmenter(nn.Module):
    """A U-Net's features θ and a 1x1 head h: images (B, C, H, W) -> logits (B, K, H, W)."""

    def __init__(self, dimensions: int, channels: Sequence[int], residual_units: int, outputs: int, in_channels: int) -> None:
        super().__init__()
        features = channels[0]
        network = UNet(
            spatial_dims=dimensions, in_channels=in_channels, out_channels=features, channels=channels, strides=(2,) * (len(channels) - 1),
            num_res_units=residual_units, norm="BATCH")
        self.backbone = nn.Sequential(network, ADN(ordering="NA", in_channels=features, norm="BATCH", act="PRELU", norm_dim=dimensions))
        self.head = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(features, outputs, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) float32 -> logits (B, K, H, W) float32."""
        logits: Tensor = self.head(self.backbone(images_BCHW))
        return logits
