"""Text for people."""

from __future__ import annotations

import pytest

from fedhelp_core.printable import nearest


@pytest.mark.parametrize(("written", "names", "near"), [
    ("DenseNet120", ["DenseNet201", "DenseNet121", "DenseNet264"], "DenseNet121"), ("resnet9", ["resnet8", "resnet20"], "resnet8"),
    ("rounds", ["round", "min_silos"], "round"), ("xyz", ["rounds"], None)])
def test_the_nearest_name_is_the_one_with_the_longer_common_beginning(written: str, names: list[str], near: str | None) -> None:
    assert nearest(written, names) == near
