"""What a silo's evaluation says that it deploys; it comes from another silo, so it may say anything."""

from __future__ import annotations

import pytest

from fedhelp_components.evaluation.deployed import deployed_model, deployed_name

BOTH = {"large": {"scores": {"dice": 0.4}}, "proxy": {"scores": {"dice": 0.7}}}


@pytest.mark.parametrize(("said", "name"), [
    ({"deployed": "proxy"}, "proxy"), ({"deployed": "large"}, "large"), ({}, "large"), ({"deployed": "other"}, "large"),
    ({"deployed": ["proxy"]}, "large")])
def test_a_silo_deploys_what_it_says_and_its_large_model_where_that_makes_no_sense(said: dict[str, object], name: str) -> None:
    assert deployed_name({"models": BOTH, **said}) == name
    assert deployed_model({"models": BOTH, **said}) is BOTH[name]


def test_a_silo_with_the_proxy_alone_deploys_that() -> None:
    assert deployed_name({"models": {"proxy": BOTH["proxy"]}}) == "proxy"
