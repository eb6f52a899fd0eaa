"""What FedHelp uses of MONAI. The only file that imports it, and only segmentation imports this file.

MONAI imports whatever it finds installed: MLflow, pandas, matplotlib, half of SciPy, which more than doubles the seconds that
each process of a run waits. None of that is used here, so it is hidden while MONAI is imported; what is loaded already stays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_NOT_USED = (
    "IPython", "ignite", "itk", "matplotlib", "mlflow", "pandas", "scipy.signal", "scipy.stats", "skimage", "sklearn", "tensorboard",
    "torchvision", "transformers",
)


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """`import name` fails inside, for those of `names` that are not imported yet."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None is how Python marks what cannot be imported
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name) is None:
                del sys.modules[name]


with _hidden(_NOT_USED):
    import monai
    from monai.data import MetaTensor, get_track_meta, set_track_meta
    from monai.data.utils import compute_importance_map, dense_patch_slices
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceLoss
    from monai.metrics import compute_dice, compute_hausdorff_distance
    from monai.networks.blocks import ADN
    from monai.networks.nets import UNet
    from monai.transforms import (
        Compose,
        NormalizeIntensity,
        Orientation,
        RandAdjustContrastd,
        RandAffined,
        RandFlipd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandScaleIntensityd,
        RandShiftIntensityd,
        RandSpatialCropd,
        RandZoomd,
        ResizeWithPadOrCrop,
        ScaleIntensityRange,
        ScaleIntensityRangePercentiles,
        Spacing,
    )
    from monai.visualize import GradCAM


def network_called(module: str, name: str) -> Callable[..., Any]:
    """The class or function `name` of `monai.networks.nets.<module>`, both of the committed list (registry/networks.py)."""
    found: Callable[..., Any] = getattr(import_module(f"monai.networks.nets.{module}"), name)
    return found


def all_networks() -> dict[str, Callable[..., Any]]:
    """Everything that `monai.networks.nets` offers, each under one name."""
    import monai.networks.nets as nets

    return {one.__name__: one for one in vars(nets).values() if callable(one) and str(getattr(one, "__module__", "")).startswith(f"{nets.__name__}.")}


def monai_version() -> str:
    """MONAI's."""
    return str(monai.__version__)


__all__ = [
    "ADN", "Compose", "DiceLoss", "GradCAM", "MetaTensor", "NormalizeIntensity", "Orientation", "RandAdjustContrastd", "RandAffined", "RandFlipd",
    "RandGaussianNoised", "RandGaussianSmoothd", "RandScaleIntensityd", "RandShiftIntensityd", "RandSpatialCropd", "RandZoomd",
    "ResizeWithPadOrCrop", "ScaleIntensityRange", "ScaleIntensityRangePercentiles", "Spacing", "UNet", "all_networks", "compute_dice",
    "compute_hausdorff_distance", "compute_importance_map", "dense_patch_slices", "get_track_meta", "monai_version", "network_called",
    "set_track_meta", "sliding_window_inference",
]
