"""What a round costs in a bucket, in requests: every one is latency, and money."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.silo.egress import LedgeredStore
from fedhelp_core.store.s3 import S3Store

WEIGHTS = {"w": np.arange(10, dtype=np.float32)}
SILOS = ("amsterdam", "berlin", "cadiz")


def counted(endpoint: str, counts: Counter[str]) -> S3Store:
    """A store of its own whose requests are counted by method as they are sent."""
    store = S3Store("s3://federation/requests", endpoint_url=endpoint)

    def count(request: Any, **_: Any) -> None:
        counts[request.method] += 1

    store._client().meta.events.register("before-send.s3", count)
    return store


def test_a_round_takes_no_request_more_than_it_must(s3_endpoint: str, tmp_path: Path) -> None:
    of_hub: Counter[str] = Counter()
    of_silos: dict[str, Counter[str]] = {silo: Counter() for silo in SILOS}
    hub = Run(counted(s3_endpoint, of_hub), "run-1")
    hub.initialise(WEIGHTS, "net")
    silos = {silo: Run(LedgeredStore(counted(s3_endpoint, of_silos[silo]), tmp_path / silo, "run-1"), "run-1") for silo in SILOS}
    for round in (1, 2):
        for counts in (of_hub, *of_silos.values()):
            counts.clear()
        for silo, run in silos.items():
            commit = run.wait_for_commit(round - 1)
            run.global_weights(commit, max_bytes=10**6)
            run.submit_update(silo, round, WEIGHTS, trained_from=commit.global_sha256, architecture="net", samples=5, loss=0.5, metrics={})
        close_round(hub, round, dict.fromkeys(SILOS, 5), min_silos=3, deadline_s=10, terms=Terms(max_bytes=10**6, max_norm=1.0))
    # a silo: abort and commit looked at, commit and model read; an answer looked for; weights and manifest written
    assert all(counts == {"HEAD": 5, "GET": 3, "PUT": 2} for counts in of_silos.values()), of_silos
    # the hub: old weights listed and removed, the round looked at and listed, commit, reference and three updates read, average and commit written
    assert of_hub == {"HEAD": 2, "GET": 10, "PUT": 2, "DELETE": 3}, of_hub
