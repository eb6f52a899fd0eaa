"""A store with promoted models, as a hub leaves it, without a run; and hospitals with drawn images that read it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedhelp_core.algorithm.local_update import initial_weights
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import preparation
from fedhelp_core.models.build import normalisation_keys
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.documents import StoredWeights, dump
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.model_record import ModelRecord, append_record, read_chain
from fedhelp_core.store.local import LocalStore
from fedhelp_core.weights.file import serialize_weights
from fedhelp_core.weights.header import Weights, WeightsSpec
from tests.core.protocol.records import RECORD

MELANOMA = TaskConfig(name="melanoma", image_size=16)


class Hub:
    """A store at `folder`, and who promotes into it."""

    def __init__(self, folder: Path, task: TaskConfig = MELANOMA, **algorithm: Any) -> None:
        self.store = LocalStore(folder)
        self.task = task
        self.algorithm = AlgorithmConfig.model_validate({"proxy_model": "resnet8", "large_model": "resnet14", "rank_top_k": 1, **algorithm})
        self.objective = objective_of(task)

    def weights(self, seed: int) -> Weights:
        """As they travel."""
        return initial_weights(self.algorithm, self.objective, seed=seed)

    def put(self, weights: Weights) -> StoredWeights:
        """Into the store, named by their content."""
        body = serialize_weights(weights, str(self.algorithm.proxy_model))
        stored = StoredWeights(
            sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body), spec=WeightsSpec.from_weights(weights, str(self.algorithm.proxy_model)))
        self.store.put_new(ModelKeys("chest").weights(stored.sha256), body)
        return stored

    def norms(self, seed: int) -> Weights:
        """Batch norms as a registered model may have them."""
        model = self.objective.build(self.algorithm.proxy_model, torch.Generator().manual_seed(seed))
        keys = normalisation_keys(model)
        return {name: tensor.numpy() for name, tensor in model.state_dict().items() if name in keys}

    def promote(self, version: str, seed: int = 1, *, norms: bool = False, **changes: Any) -> ModelRecord:
        """Version `version`, drawn from `seed`, becomes champion."""
        chain = read_chain(self.store, "chest")
        number, previous = chain.newest
        weights = self.put(self.weights(seed))
        record = replace(
            RECORD, number=number + 1, previous_sha256=previous, version=version, task=self.task, preprocessing=preparation(self.task),
            algorithm=self.algorithm, weights=weights, statistics="averaged", norms=self.put(self.norms(seed)) if norms else None,
            class_shares=[1 / len(self.task.classes)] * len(self.task.classes) if self.objective.decides else [],
            headline=self.objective.headline.name, lineage=replace(RECORD.lineage, rounds=2), card_sha256="", card_html_sha256="", **changes)
        assert append_record(self.store, record)
        return record

    def rewrite(self, record: ModelRecord, **changes: Any) -> None:
        """Alter a record in place, as nobody may."""
        self.store.put(ModelKeys("chest").record(record.number), dump(replace(record, **changes)))


