"""MONAI's networks as models: named, checked, built, cut into backbone and head, and listed."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.networks.nets as monai
import pytest
import torch
from torch import nn

from fedhelp_core.config.federation import Federation, parse_federation
from fedhelp_core.config.model import ModelConfig, model_of
from fedhelp_core.errors import ConfigError
from fedhelp_core.models.build import build_model, build_public_head, normalisation_keys
from fedhelp_core.models.cut import head_of, require_rows
from fedhelp_core.models.pretrained import fitted
from fedhelp_core.registry.networks import networks

_DENSE = {"network": "DenseNet", "arguments": {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}}
_ROOT = Path(__file__).resolve().parents[3]


def _federation(model: Any, task: str = "pneumonia", **algorithm: Any) -> Federation:
    return parse_federation({
        "name": "x", "task": {"name": task, "image_size": 64}, "algorithm": {"method": "fedavg", "proxy_model": model, **algorithm},
        "store": {"url": "store"}, "silos": [{"name": "a", "dispatch": {"kind": "process", "silo_config": "a.yaml"}}]}, source="federation.yaml")


def _built(document: Any, seed: int = 1, **form: Any) -> nn.Module:
    return build_model(
        model_of(document), **{"outputs": 2, "in_channels": 1, "side": 32, "generator": torch.Generator().manual_seed(seed), **form})


def test_a_name_alone_stays_a_name_in_the_frozen_config_and_a_network_keeps_its_arguments() -> None:
    assert "  proxy_model: resnet20\n" in _federation("resnet20").to_yaml()
    assert "  proxy_model: DenseNet121\n" in _federation({"network": "DenseNet121"}).to_yaml()
    again = parse_federation(_federation(_DENSE).model_dump(mode="json"), source="again")
    assert again.algorithm.proxy_model == ModelConfig.model_validate(_DENSE)
    assert str(again.algorithm.proxy_model) == "DenseNet(block_config=[2, 2], growth_rate=4, init_features=8)"


@pytest.mark.parametrize(("model", "sentence"), [
    ("DenseNet12", "did you mean 'DenseNet121'?"),
    ("SegResNet", "a model for classes of 2D images expected"),
    ({"network": "DenseNet121", "arguments": {"growthrate": 3}}, "arguments.growthrate: DenseNet121 has no such argument; did you mean 'growth_"),
    ({"network": "DenseNet121", "arguments": {"growth_rate": "16"}}, "arguments.growth_rate: a whole number expected"),
    ({"network": "DenseNet121", "arguments": {"growth_rate": 10**6}}, "numbers up to 4096"),
    ({"network": "DenseNet121", "arguments": {"in_channels": 3}}, "arguments.in_channels: the task decides it"),
    ({"network": "DenseNet121", "arguments": {"pretrained": True}}, "arguments.pretrained: nothing is downloaded in training"),
    ({"network": "EfficientNetBN"}, "arguments.model_name: missing"),
    ({"network": "resnet20", "arguments": {"depth": 3}}, "resnet20 takes none"),
    ({"network": "DenseNet121", "plugin": "mine"}, "one of network and plugin expected, got both"),
    ({"plugin": "os:system"}, "plugin: the name of an entry point expected"),
    ({"netwrk": "DenseNet121"}, "did you mean 'network'?"),
])
def test_a_wrong_network_or_argument_is_one_sentence_before_anything_starts(model: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _federation(model)
    (problem,) = refused.value.problems
    assert problem.startswith("federation.yaml: algorithm.proxy_model") and sentence in problem


def test_the_hub_judges_a_network_without_pytorch() -> None:
    program = ("import sys\nfrom fedhelp_core.config.model import model_of\nmodel_of({'network': 'DenseNet121', 'arguments': {'growth_rate': 16}})\n"
               "print([name for name in ('torch', 'monai') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("document", "form", "shape"), [
    (_DENSE, {}, (2, 2)),
    ({"network": "resnet10", "arguments": {"widen_factor": 0.125}}, {"dimensions": 3}, (2, 2)),
    ({"network": "SegResNet"}, {"answer": "mask", "outputs": 1, "dimensions": 3}, (2, 1, 32, 32, 32)),
    ({"network": "UNet", "arguments": {"channels": [8, 16], "strides": [2]}}, {"answer": "mask", "outputs": 1}, (2, 1, 32, 32)),
    ({"network": "DynUNet", "arguments": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}},
     {"answer": "mask", "outputs": 1}, (2, 1, 32, 32)),
    ({"network": "UNet", "arguments": {"channels": [8, 16, 32], "strides": [2, 2], "num_res_units": 2}},
     {"answer": "mask", "outputs": 3, "dimensions": 3}, (2, 3, 32, 32, 32)),
    ({"network": "SwinUNETR", "arguments": {"feature_size": 12}}, {"answer": "mask", "outputs": 1, "side": 64}, (2, 1, 64, 64)),
], ids=["DenseNet", "ResNet-3D", "SegResNet-3D", "UNet", "DynUNet", "UNet-residual-3D", "SwinUNETR"])
def test_a_network_is_the_same_from_the_same_seed_and_its_public_head_shares_all_but_the_head(
    document: Any, form: dict[str, Any], shape: tuple[int, ...],
) -> None:
    model, same, other = (_built(document, seed, **form) for seed in (1, 1, 2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    assert any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
    images = torch.randn((2, 1, *(form.get("side", 32),) * form.get("dimensions", 2)), generator=torch.Generator().manual_seed(0))
    model.eval()
    assert model(images).shape == shape
    whole = next(iter(model.children()))
    assert whole is model.backbone and {name.partition(".")[0] for name in model.state_dict()} == {"backbone", "head"}
    public = build_public_head(model, outputs=5, generator=torch.Generator())
    assert public(model.backbone(images)).shape == (2, 5, *shape[2:])


def test_a_head_whose_rows_shapes_do_not_tell_is_refused_where_a_silo_labels_some_outputs_alone() -> None:
    unet = {"network": "UNet", "arguments": {"channels": [8, 16], "strides": [2]}}
    require_rows(_built(unet, answer="mask", outputs=3), "UNet", 3)
    require_rows(_built(_DENSE, outputs=24), "DenseNet", 24)
    with pytest.raises(ConfigError, match=r"network UNet: its head is a transposed convolution of as many inputs as outputs \(24\)"):
        require_rows(_built(unet, answer="mask", outputs=24), "UNet", 24)


def test_a_network_that_ends_in_a_sum_has_a_module_as_head_and_answers_as_its_authors_have_it() -> None:
    """UNet with residual units: the whole last block depends on the number of classes, and nothing else does."""
    document = {"network": "UNet", "arguments": {"channels": [8, 16, 32], "strides": [2, 2], "num_res_units": 2}}
    model = _built(document, answer="mask", outputs=3)
    assert model.head_name == "model.2" and len(list(model.head.children())) == 2
    whole = monai.UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2), num_res_units=2)
    own = {name.replace("head.", "model.2.").replace("backbone.", ""): tensor for name, tensor in model.state_dict().items()}
    whole.load_state_dict(own)
    images = torch.randn((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole(images), model(images))
    of_three, of_seven = (
        {name: tensor.shape for name, tensor in _built(document, answer="mask", outputs=outputs).state_dict().items() if name.startswith("backbone.")}
        for outputs in (3, 7))
    assert of_three == of_seven
    public, same = (build_public_head(model, outputs=5, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in public.state_dict().items())
    loaded = fitted(model, {f"module.{name}": tensor.numpy() for name, tensor in whole.state_dict().items()}, partial=False)
    assert not loaded.drawn and not loaded.unused


def test_a_layer_under_two_names_travels_once_and_is_loaded_into_both() -> None:
    document = {"network": "DynUNet", "arguments": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}}
    model, other = (_built(document, seed, answer="mask", outputs=1) for seed in (1, 2))
    sent = model.state_dict()
    assert len({tensor.data_ptr() for tensor in sent.values()}) == len(sent) == len(list(model.parameters())) + len(list(model.buffers()))
    assert sent.keys() >= {name for name, _ in model.named_parameters()}
    other.load_state_dict(sent)
    images = torch.randn((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(images), other.eval()(images))


class _Mean(nn.Module):
    """Whose answer no module of its own gives."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(1, outputs, 3), nn.Conv2d(1, outputs, 3)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return (self.one(images_BCHW) + self.other(images_BCHW)).mean(dim=(2, 3))


def test_a_network_that_is_all_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no head that can be taken off"):
        head_of(_Mean(2), outputs=2, shape=(1, 8, 8), per_pixel=False, make=lambda outputs, _generator: _Mean(outputs))


def test_building_a_network_leaves_pytorchs_own_generator_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    _built(_DENSE)
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_norms_stay_at_home_and_group_norms_travel() -> None:
    grouped = {"init_features": 8, "growth_rate": 4, "block_config": [2, 2], "norm": ["group", {"num_groups": 2}]}
    batch, group = _built(_DENSE), _built({"network": "DenseNet", "arguments": grouped})
    norms = [name for name, layer in batch.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {name.rpartition(".")[0] for name in normalisation_keys(batch)} == set(norms) != set()
    assert normalisation_keys(group) == frozenset()


@pytest.mark.parametrize(("document", "form", "sentence"), [
    ({"network": "DenseNet121"}, {}, "cannot be trained on images of 32 x 32"),
    ({"network": "SwinUNETR", "arguments": {"feature_size": 12}}, {"answer": "mask", "outputs": 1, "side": 48}, "divisible by"),
    ({"network": "UNet", "arguments": {"channels": [8, 16, 32], "strides": [3]}}, {"answer": "mask", "outputs": 1}, "cannot be built with"),
    ({"network": "DenseNet121", "arguments": {"norm": "bach"}}, {"side": 64}, "cannot be built with"),
    ({"plugin": "nobodys"}, {}, "is not installed here (entry points of group fedhelp.networks: none)"),
])
def test_a_network_that_cannot_be_cut_or_trained_is_refused_with_the_reason(document: Any, form: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _built(document, **form)
    assert str(refused.value).startswith(f"network {model_of(document)} ") and sentence in str(refused.value)


def test_a_plugin_is_an_installed_entry_point_and_its_head_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wards_network.py").write_text(
        "from torch import nn\n\ndef network(*, channels, outputs, sides, width):\n"
        "    body = [nn.Conv2d(channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]\n"
        "    return nn.Sequential(*body, nn.Linear(width, outputs))\n", encoding="utf-8")
    installed = tmp_path / "wards_network-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: wards-network\nVersion: 1\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text("[fedhelp.networks]\nward = wards_network:network\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    model = _built(_federation({"plugin": "ward", "arguments": {"width": 4}}).algorithm.proxy_model)
    assert isinstance(model.head, nn.Linear) and model(torch.zeros((2, 1, 32, 32))).shape == (2, 2)
    with pytest.raises(ConfigError, match="network plugin:ward cannot be built by wards_network:network: TypeError"):
        _built({"plugin": "ward"})


@pytest.mark.timeout(120)  # seconds: networks are built and sent shapes through, one argument after the other
def test_the_list_is_of_the_installed_monai_and_says_what_a_network_takes() -> None:
    listing = runpy.run_path(str(_ROOT / "docs" / "networks.py"))
    written = json.loads((_ROOT / "fedhelp_core" / "registry" / "networks.json").read_text(encoding="utf-8"))
    assert written["monai"] == listing["monai_version"]()
    makers = listing["all_networks"]()
    assert written["networks"].keys() == networks().keys() <= makers.keys()
    for name in ("BasicUNet", "DenseNet", "UNet"):  # of all of them: python docs/networks.py --check, some minutes
        assert listing["_entry"](name, makers[name]) == written["networks"][name]
