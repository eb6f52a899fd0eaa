"""What a study leaves in the federation's store for the reports of runs with the same settings. Called by `fedhelp simulate`."""

from __future__ import annotations

from fedhelp_core.config.federation import Federation
from fedhelp_core.protocol.study_record import StudyRecord, write_study
from fedhelp_core.store.base import Store
from fedhelp_core.study.study import StudyResult
from fedhelp_core.study.table import Spread


def record_study(store: Store, federation: Federation, result: StudyResult) -> None:
    """A record for each normalisation."""
    for normalisation in result.normalisations:
        rows = {method: result.row(method, normalisation) for method in result.methods}
        write_study(store, federation.override(**{"algorithm.normalisation": normalisation}), StudyRecord(
            metric=result.headline.name, rounds=federation.algorithm.rounds, seeds=list(result.seeds), test_sha256=dict(result.test_sha256),
            methods={method: {silo: Spread.of(cell.score(result.headline, silo) for cell in row).mean for silo in result.test_sha256}
                     for method, row in rows.items()}))
