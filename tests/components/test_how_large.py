"""Check says how large models are, and asks where the one that stays at home is the smaller one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedhelp_components.check.__main__ import say_how_large
from fedhelp_core.config.federation import parse_federation
from fedhelp_core.protocol.documents import ModelSize, SiloReport, SplitSizes

FEDERATION = parse_federation({
    "name": "x", "algorithm": {"method": "fedhelp-no-api", "proxy_model": "resnet20", "large_model": "resnet8"}, "store": {"url": "store"},
    "silos": [{"name": "a", "dispatch": {"silo_config": "a.yaml"}}]}, source="test")
PROXY = ModelSize(parameters=270_000, travelling_bytes=1_100_000, flops=10**9, training_bytes=10**8, batch_norms=3)


@pytest.mark.parametrize(("parameters", "asked"), [(80_000, True), (270_000, False), (1_700_000, False)])
def test_a_large_model_that_is_smaller_than_the_proxy_is_asked_about(parameters: int, asked: bool, capsys: pytest.CaptureFixture[str]) -> None:
    report = SiloReport(
        silo="a", samples=SplitSizes(training=8, validation=0, test=4), training_class_counts=[1] * 8, test_sha256="0" * 64, start_sha256="0" * 64,
        models={"proxy": PROXY, "large": replace(PROXY, parameters=parameters)})
    say_how_large(FEDERATION, report)
    said = capsys.readouterr()
    assert "proxy model resnet20: 270,000 parameters" in said.out + said.err
    assert ("the large model (resnet8) has fewer parameters than the one that travels (resnet20)" in said.out + said.err) == asked
