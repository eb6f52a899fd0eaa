"""The model that the hospital has in use, followed: a newer one is loaded beside it and takes its place between two questions. Called by `app`.

`fedhelp model adopt` and `rollback` move a pointer in the state folder, which is looked at about every second. A question keeps the model that it
began with. A model that cannot be loaded changes nothing: the one before goes on answering.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fedhelp_core import telemetry
from fedhelp_core.config.silo import SiloConfig
from fedhelp_core.deployment.adopted import Adopted, ModelFolder, model_meant
from fedhelp_core.deployment.images_in import Reader
from fedhelp_core.deployment.scorer import Scorer, scorer_in
from fedhelp_core.errors import FedHelpError
from fedhelp_core.printable import printable
from fedhelp_core.serving.watch import Watch

_AGAIN_S = 30.0  # before a model that could not be loaded is tried again: reading and hashing it takes seconds
_log = logging.getLogger("fedhelp.serving")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that answers."""

    adopted: Adopted
    scorer: Scorer
    reader: Reader
    watch: Watch

    @property
    def name(self) -> str:
        """Registered."""
        return self.adopted.contract.name

    @property
    def version(self) -> str:
        """In the hub's registry."""
        return self.adopted.contract.version


class InUse:
    """The model in use in the hospital of `config`: `name`, or what silo.yaml or the state folder leaves no doubt about."""

    def __init__(self, config: SiloConfig, name: str | None, device: torch.device) -> None:
        self._config = config
        self._name = name
        self._device = device
        self._failed: tuple[Path, float] | None = None
        self.loaded: Loaded | None = None
        self.problem = ""
        """Why the model that the pointer names does not answer; '' where it does."""

    def look(self) -> None:
        """Follow the pointer. Called by one thread at a time, never by the one that answers: loading takes seconds."""
        try:
            adopted = self._pointed()
            if self.loaded is not None and self.loaded.adopted.folder == adopted.folder:
                self._is_followed()
                return
            if self._failed is not None and self._failed[0] == adopted.folder and time.monotonic() - self._failed[1] < _AGAIN_S:
                return
            self._failed = adopted.folder, time.monotonic()
            scorer = scorer_in(adopted.contract, adopted.weights, self._config.adoption, self._device)
            loaded = Loaded(adopted, scorer, Reader(adopted.contract.task, adopted.contract.pixel_bits), Watch(scorer, self._config.state))
        except (FedHelpError, OSError) as e:
            if str(e) != self.problem:
                _log.warning("%s%s", printable(e), f"; version {self.loaded.version} goes on answering" if self.loaded else "")
            self.problem = str(e)
            telemetry.serving_behind(True)
            return
        self._is_followed()
        loaded.watch.begins()
        self.loaded = loaded
        _log.warning("%s answers", printable(adopted.contract.title))

    def _is_followed(self) -> None:
        self.problem, self._failed = "", None
        telemetry.serving_behind(False)

    def _pointed(self) -> Adopted:
        state = self._config.state
        return ModelFolder(state, model_meant(state, asked=self._name, configured=self._config.adoption.model)).in_use()
