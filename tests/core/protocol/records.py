"""A record of a model as tests need one, with the weights that it names."""

from __future__ import annotations

import hashlib

import numpy as np

from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.federation import EvaluationConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.protocol.documents import SplitSizes
from fedhelp_core.protocol.model_record import HospitalScores, Lineage, ModelRecord, Parent, StoredWeights
from fedhelp_core.weights.file import serialize_weights
from fedhelp_core.weights.header import WeightsSpec

SHA = "0123456789abcdef" * 4
WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
BODY = serialize_weights(WEIGHTS, "resnet20")
STORED = StoredWeights(
    sha256=hashlib.sha256(BODY).hexdigest(), size_bytes=len(BODY), spec=WeightsSpec("resnet20", {"w": ("F32", (2, 3))}))
NORMS = {"n.running_mean": np.zeros(2, np.float32)}
NORMS_BODY = serialize_weights(NORMS, "resnet20")
RECORD = ModelRecord(
    number=1, previous_sha256="", name="chest", kind="promoted", version="3", run="a-run", time="2026-01-01T00:00:00.000+00:00", decided_by="gate",
    reason="the small silos' mean rises by 0.100 to 0.800", task=TaskConfig(name="pneumonia"),
    preprocessing="rgb8, shorter side 32, bicubic, centre crop", algorithm=AlgorithmConfig(rank_top_k=1), evaluation=EvaluationConfig(),
    weights=STORED, statistics="public-images",
    norms=StoredWeights(
        sha256=hashlib.sha256(NORMS_BODY).hexdigest(), size_bytes=len(NORMS_BODY), spec=WeightsSpec("resnet20", {"n.running_mean": ("F32", (2,))})),
    class_shares=[0.25, 0.75], headline="balanced_accuracy", scores={"all_silos_mean": 0.8, "worst_silo": 0.7},
    hospitals=(
        HospitalScores(
            name="brno", scores={"balanced_accuracy": 0.9}, interval=(0.8, 0.95), kind="large",
            images=SplitSizes(training=10, validation=2, test=4)),
        HospitalScores(name="", scores={"balanced_accuracy": 0.7})),
    lineage=Lineage(
        federation_sha256=SHA, distillation_set_sha256=SHA, rounds=50, hospitals=2, training_images=30, test_images=9, software={"fedhelp": "0.1.0"},
        parent=Parent(sha256=SHA, model="chest", version="2")),
    card_sha256=SHA, card_html_sha256=SHA)
