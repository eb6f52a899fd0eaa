"""Weights from elsewhere: which tensors of a file go into a model, under whose names, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, initial_weights, large_model_of, proxy_with
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.federation import Federation, parse_federation
from fedhelp_core.config.model import model_of
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.errors import ConfigError, NotFound, WeightsError
from fedhelp_core.lean_monai import network_called
from fedhelp_core.models.build import build_model, normalisation_keys
from fedhelp_core.models.pretrained import fitted
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.pretrained import read_pretrained, settle_pretrained
from fedhelp_core.store.open import open_store

_ARGUMENTS = {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}
_DENSE = {"network": "DenseNet", "arguments": _ARGUMENTS}


def _theirs(classes: int = 2, seed: int = 11) -> dict[str, np.ndarray[Any, Any]]:
    """The state of MONAI's own network, as somebody saved it, with statistics that training left."""
    torch.manual_seed(seed)
    network = network_called("densenet", "DenseNet")(2, 3, classes, 8, 4, (2, 2))
    network.train()(torch.randn(4, 3, 32, 32))
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def _model(outputs: int = 2) -> torch.nn.Module:
    return build_model(model_of(_DENSE), outputs=outputs, side=32, generator=torch.Generator().manual_seed(1))


def test_a_file_with_the_networks_own_names_is_the_same_network_afterwards() -> None:
    theirs, model = _theirs(), _model()
    found = fitted(model, theirs, partial=False)
    model.load_state_dict(found.tensors)
    assert (found.drawn, found.unused) == ((), ())
    network = network_called("densenet", "DenseNet")(2, 3, 2, 8, 4, (2, 2))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in theirs.items()})
    images = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(images), network.eval()(images))


def test_names_of_data_parallel_and_of_fedhelp_itself_are_known_too() -> None:
    model = _model()
    wrapped = {f"module.{name}": array for name, array in _theirs().items()}
    assert not fitted(model, wrapped, partial=False).drawn
    own = {name: tensor.numpy() for name, tensor in _model().state_dict().items()}
    assert not fitted(model, own, partial=False).unused


def test_a_head_of_other_classes_is_drawn_anew_and_said_so() -> None:
    found = fitted(_model(outputs=5), _theirs(classes=1000), partial=False)
    assert found.drawn == ("head.weight", "head.bias")
    assert set(found.unused) == {"class_layers.out.weight", "class_layers.out.bias"}
    assert str(found).endswith("from the seed: head.weight, head.bias; of the file unused: class_layers.out.weight, class_layers.out.bias")


def test_a_backbone_that_is_not_whole_is_refused_unless_it_may_be_partial() -> None:
    theirs = _theirs()
    del theirs["features.conv0.weight"]
    with pytest.raises(WeightsError, match=r"1 tensors of the backbone are not in it \(backbone.features.conv0.weight\)"):
        fitted(_model(), theirs, partial=False)
    assert fitted(_model(), theirs, partial=True).drawn == ("backbone.features.conv0.weight",)
    with pytest.raises(WeightsError, match="does not fit"):
        fitted(_model(), {"anything": np.zeros(3, np.float32)}, partial=True)


@pytest.mark.parametrize(("name", "value", "sentence"), [
    ("features.conv0.weight", np.nan, "holds NaN or infinity"), ("features.norm0.running_var", -1.0, "holds a negative number")])
def test_values_that_no_model_has_are_refused(name: str, value: float, sentence: str) -> None:
    theirs = _theirs()
    theirs[name].flat[0] = value
    with pytest.raises(WeightsError, match=sentence):
        fitted(_model(), theirs, partial=False)


@pytest.mark.parametrize("normalisation", ["shared", "silo"])
def test_proxy_and_large_model_begin_with_the_file_batch_norms_at_home_included(normalisation: str) -> None:
    said = {"sha256": "0" * 64, "licence": "CC-BY-4.0", "source": "a test"}
    algorithm = AlgorithmConfig.model_validate({
        "proxy_model": _DENSE, "large_model": _DENSE, "normalisation": normalisation, "pretrained": {"proxy": said, "large": said}})
    objective = objective_of(TaskConfig.model_validate({"name": "pneumonia", "image_size": 32}))
    pretrained: Any = {"proxy": _theirs(), "large": _theirs(seed=12)}
    settings = UpdateSettings(algorithm=algorithm, objective=objective, seed=1, silo="a", kind="large", pretrained=pretrained)
    start = initial_weights(algorithm, objective, seed=1, pretrained=pretrained)
    proxy, large = proxy_with(start, SiloState.empty(), settings), large_model_of(SiloState.empty(), settings)
    assert (len(proxy.state_dict()) == len(start)) == (normalisation == "shared")
    for model, seed in ((proxy, 11), (large, 12)):
        expected = fitted(model, _theirs(seed=seed), partial=False).tensors
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert normalisation_keys(proxy)


def _federation(folder: Path, **pretrained: Any) -> Federation:
    return parse_federation({
        "name": "x", "task": {"name": "pneumonia"}, "algorithm": {"method": "fedavg", "proxy_model": _DENSE, "pretrained": {"proxy": pretrained}},
        "store": {"url": str(folder)}, "silos": [{"name": "a", "dispatch": {"kind": "process", "silo_config": "a.yaml"}}]}, source="federation.yaml")


def test_hub_and_silo_hold_the_file_against_its_sha256(tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file(_theirs(), file)
    said = {"file": file, "licence": "CC-BY-4.0", "source": "a test", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    config, store = _federation(tmp_path / "store", **said), open_store(str(tmp_path / "store"))
    settle_pretrained(config, store, store)
    assert read_pretrained(config, store)["proxy"].keys() == _theirs().keys()
    assert read_pretrained(config, None)["proxy"].keys() == _theirs().keys()

    settle_pretrained(_federation(tmp_path / "store", **{**said, "file": None}), store, store)  # it lies in the store by now
    with pytest.raises(ConfigError, match=r"algorithm.pretrained.proxy.sha256: 000000000000... expected"):
        settle_pretrained(_federation(tmp_path / "store", **{**said, "sha256": "0" * 64}), store, store)
    with pytest.raises(NotFound, match="no object models/x/weights/"):
        settle_pretrained(_federation(tmp_path / "store", **{**said, "file": None, "sha256": "0" * 64}), store, store)

    stored = tmp_path / "store" / ModelKeys("x").weights(str(said["sha256"]))
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:-1] + b"\1")
    with pytest.raises(WeightsError, match="tampered with or damaged"):
        read_pretrained(config, store)


def test_a_checkpoint_that_is_no_safetensors_file_is_never_opened(tmp_path: Path) -> None:
    file = tmp_path / "theirs.pt"
    torch.save({"a": torch.zeros(1)}, file)
    said = {"file": file, "licence": "CC-BY-4.0", "source": "a test", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(WeightsError, match="safetensors expected: it may hold pickled code and is never opened"):
        settle_pretrained(_federation(tmp_path / "store", **said), store, store)


def test_a_config_without_pretrained_weights_says_nothing_of_them(tmp_path: Path) -> None:
    plain = parse_federation({
        "name": "x", "task": {"name": "pneumonia"}, "algorithm": {"method": "fedavg"}, "store": {"url": str(tmp_path)},
        "silos": [{"name": "a", "dispatch": {"kind": "process", "silo_config": "a.yaml"}}]}, source="federation.yaml")
    assert "pretrained" not in plain.to_yaml()
