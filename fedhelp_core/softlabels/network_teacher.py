"""A teacher made of a network and weights that a user has: MONAI's, timm's or torchvision's. Called by `fedhelp teacher`.

timm and torchvision are the user's own; FedHelp needs neither, and the teacher that is made needs PyTorch alone.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedhelp_core.config.model import ModelConfig
from fedhelp_core.errors import ConfigError, NotFound, WeightsError
from fedhelp_core.registry.models import model_called
from fedhelp_core.registry.networks import MonaiNetwork
from fedhelp_core.tracking.models import export_network, save_pyfunc_from_code
from fedhelp_core.weights.file import read_weights

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of pixels in [0, 1]; torchvision's and most of timm's networks
_MOST_BYTES = 2**34  # of a weights file
LIBRARIES = ("monai", "timm", "torchvision")
_INSTEAD = "python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('FILE', weights_only=True), 'FILE.safetensors')\""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a teacher is made of."""

    library: str
    network: str
    weights: Path
    classes: int
    side: int
    channels: int = 3
    arguments: Mapping[str, Any]
    mean: tuple[float, ...] | None = None
    """Of pixels in [0, 1] that the network was trained with; None: the library's own."""
    std: tuple[float, ...] | None = None


def make_teacher(wanted: Wanted, folder: Path) -> None:
    """Write the teacher into `folder`, new or empty: an MLflow pyfunc model without pickle.

    Raises:
        ConfigError: there is no such library or network.
        NotFound: there is no such weights file.
        WeightsError: the weights are another network's.
        PermanentError: the folder is not empty, or the network cannot be exported.
    """
    network, (mean, std) = _network(wanted)
    _load(network, wanted)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedhelp-teacher-") as scratch:
        program = Path(scratch) / "network.pt2"
        export_network(network.eval(), torch.zeros((1, wanted.channels, wanted.side, wanted.side)), program)
        save_pyfunc_from_code(
            folder, code=Path(__file__).with_name("pyfunc_network.py"), artifacts={"program": program},
            settings={"network": f"{wanted.library}:{wanted.network}", "channels": wanted.channels, "side": wanted.side,
                      "mean": list(wanted.mean or mean), "std": list(wanted.std or std)},
            requirements=[f"torch=={torch.__version__.split('+')[0]}"])
    (folder / "model-settings.json").write_text(json.dumps(_for_mlserver(wanted), indent=1), encoding="utf-8")


def _for_mlserver(wanted: Wanted) -> dict[str, Any]:
    """What MLServer asks of a model's folder. Its runtime for MLflow says nothing of inputs by itself, and calls an array's answer output-1."""
    images = {"name": "images", "datatype": "UINT8", "shape": [-1, wanted.side, wanted.side, 3]}
    return {
        "name": "teacher", "implementation": "mlserver_mlflow.MLflowRuntime", "parameters": {"uri": "./", "version": "1", "content_type": "np"},
        "inputs": [images], "outputs": [{"name": "output-1", "datatype": "FP32", "shape": [-1, wanted.classes]}]}


def _network(wanted: Wanted) -> tuple[nn.Module, tuple[tuple[float, ...], tuple[float, ...]]]:
    """The network without weights, and what its library subtracts from pixels and divides them by."""
    plain = ((0.0,) * wanted.channels, (1.0,) * wanted.channels)
    if wanted.library == "monai":
        from fedhelp_core.models.monai_network import monai_network

        model = ModelConfig(network=wanted.network, arguments=dict(wanted.arguments))
        found = model_called(wanted.network, "classes", 2)
        if not isinstance(found, MonaiNetwork):
            raise ConfigError(f"a network of MONAI's expected, {wanted.network} is FedHelp's own")
        return monai_network(
            found, model.arguments, outputs=wanted.classes, channels=wanted.channels, sides=(wanted.side,) * 2, generator=None), plain
    if wanted.library not in LIBRARIES:
        raise ConfigError(f"LIBRARY:NETWORK expected, of {', '.join(LIBRARIES)}, got {wanted.library!r}")
    try:
        library: Any = importlib.import_module(wanted.library if wanted.library == "timm" else "torchvision.models")
    except ImportError as e:
        raise ConfigError(f"{wanted.library} is not installed here, and FedHelp does not need it; install it: pip install {wanted.library}") from e
    try:
        if wanted.library == "timm":
            made: nn.Module = library.create_model(
                wanted.network, pretrained=False, num_classes=wanted.classes, in_chans=wanted.channels, **wanted.arguments)
            its = made.default_cfg
            return made, (tuple(its["mean"]), tuple(its["std"])) if wanted.channels == 3 else plain  # type: ignore[index]
        return library.get_model(wanted.network, weights=None, num_classes=wanted.classes, **wanted.arguments), _IMAGENET
    except (RuntimeError, ValueError, TypeError) as e:
        raise ConfigError(f"{wanted.library} makes no network {wanted.network!r} with {wanted.classes} classes: {str(e)[:200]}") from e


def _load(network: nn.Module, wanted: Wanted) -> None:
    if not wanted.weights.is_file():
        raise NotFound(f"no weights file {wanted.weights}")
    try:
        found = read_weights(wanted.weights, expected=None, max_bytes=_MOST_BYTES, sha256=None)
    except WeightsError as e:
        command = _INSTEAD.replace("FILE", wanted.weights.name)
        e.add_note(f"{wanted.weights}: where it is your own checkpoint, make a safetensors file of it: {command}")
        raise
    tensors = {name.removeprefix("module."): torch.from_numpy(array) for name, array in found.items()}
    own = network.state_dict()
    wrong = [name for name, tensor in own.items() if name not in tensors and not name.endswith("num_batches_tracked")]
    wrong += [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        some = f"{', '.join(wrong[:5])}{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}"
        raise WeightsError(f"{wanted.weights}: is not of {wanted.library}:{wanted.network} with {wanted.classes} classes: {some} differ")
    network.load_state_dict(tensors, strict=False)
