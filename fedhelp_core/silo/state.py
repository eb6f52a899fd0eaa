"""What stays in a hospital: the state of each round, and the lock on it.

Everything lies on the silo's own volume (`state` of silo.yaml):

    runs/<run>/round-00007.safetensors   large model, public head, batch norms, optimizer moments after round 7
    runs/<run>/operating-points.json     how this hospital decides with each of its models, the deployed one first
    runs/<run>/lock                      held by the one process that works on this run here
    cache/                               decoded images, the distillation set
    egress.jsonl                         every object that left, before it left (egress.py)

Round r run again starts from the newest state before r, whatever had already been written; the last two are kept.
Called by work.py. Knows no network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from fedhelp_core.algorithm.local_update import SiloState
from fedhelp_core.algorithm.operating_point import Point
from fedhelp_core.disk import atomic_write, disk_errors, folder_locked, sweep
from fedhelp_core.weights.file import read_weights, write_weights

_ARCHITECTURE = "silo-state"
_KEPT_VERSIONS = 2
_FILE = re.compile(r"^round-(\d{5,})\.safetensors$")


class StateFolder:
    """One run's states in one silo; its folder appears with the first work, so a silo that was only checked has none."""

    def __init__(self, state: Path, run_id: str) -> None:
        self.folder = state / "runs" / run_id

    def versions(self) -> list[int]:
        """Rounds whose state is on disk, oldest first."""
        found = (_FILE.match(path.name) for path in self.folder.iterdir()) if self.folder.exists() else ()
        return sorted(int(match.group(1)) for match in found if match)

    def before(self, round_number: int) -> SiloState:
        """The newest state of a round before `round_number`; empty if there is none.

        Raises:
            WeightsError: the file is damaged.
        """
        earlier = [version for version in self.versions() if version < round_number]
        if not earlier:
            return SiloState.empty()
        return self._read(earlier[-1])

    def latest(self) -> SiloState:
        """The newest state on disk; empty if there is none."""
        versions = self.versions()
        return self._read(versions[-1]) if versions else SiloState.empty()

    def save(self, state: SiloState) -> None:
        """Write the state of `state.round` in one step, then drop all but the last two. Called by whoever holds the lock.

        Raises:
            StorageFull: no space left; what was there before is untouched.
        """
        path = self._path(state.round)
        with disk_errors(path):
            sweep(self.folder, older_than=0)  # whoever holds the lock is the only writer: what is left is of killed ones
            with atomic_write(path, durable=True) as scratch:
                write_weights(scratch, {name: tensor.numpy() for name, tensor in state.tensors.items()}, _ARCHITECTURE)
            for version in [v for v in self.versions() if v <= state.round][:-_KEPT_VERSIONS]:
                self._path(version).unlink(missing_ok=True)

    def keep_operating_points(self, points: Mapping[str, Point]) -> None:
        """Write down how the silo decides with each of its models. Nothing else reads it: it is the hospital's own.

        Raises:
            StorageFull: no space left.
        """
        path = self.folder / "operating-points.json"
        with disk_errors(path), atomic_write(path) as scratch:
            scratch.write_text(json.dumps({model: asdict(point) for model, point in points.items()}, indent=1), encoding="utf-8")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this run's lock; it goes with the process, however that ends.

        Raises:
            StateLocked: another process holds it.
        """
        with folder_locked(self.folder, "another process is working on this silo's state; wait for it to end, or stop it, and try again"):
            yield

    def _read(self, version: int) -> SiloState:
        path = self._path(version)
        arrays = read_weights(path, expected=None, max_bytes=path.stat().st_size, sha256=None)
        return SiloState(round=version, tensors={name: torch.from_numpy(array) for name, array in arrays.items()})

    def _path(self, version: int) -> Path:
        return self.folder / f"round-{version:05d}.safetensors"
