"""A sample of mutations.py: files with bytes changed are refused, or read as they were. `make fuzz-files` tries ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.data.mutations import KINDS, mutate

pytestmark = pytest.mark.slow  # MONAI takes seconds to import
ROUNDS = 24


@pytest.mark.parametrize("number", range(len(KINDS)), ids=list(KINDS))
def test_a_changed_file_is_refused_or_read_rightly(number: int, tmp_path: Path) -> None:
    for round_ in range(ROUNDS):
        folder = tmp_path / str(round_)
        folder.mkdir()
        name, outcome = mutate(round_ * len(KINDS) + number, folder)
        assert outcome in ("right", "refused"), f"{name}, round {round_}"
