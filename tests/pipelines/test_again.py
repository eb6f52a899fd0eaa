"""Runs that Kubeflow starts again: a recurring run, made as docs/operating.md says, and a clone, which has the form of the run before.

Kubeflow's own part is not tried here, but what is sent to its REST interface, and what `check` makes of the form that it keeps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhelp_components.check.component import check
from fedhelp_core.errors import RunConflict
from tests.pipelines.contract import FOLDER
from tests.pipelines.kubeflow import Kubeflow
from tests.tiny import TinyFederation

GUIDE = Path(__file__).parents[2] / "docs" / "operating.md"
FORM = {"method": "fedavg", "normalisation": "shared", "rounds": 2, "local_epochs": 1, "learning_rate": 0.001, "seed": 5, "promotion_mode": "gate"}
pytestmark = pytest.mark.slow


def test_the_guides_monthly_run_names_the_newest_version_and_fields_that_its_form_has(kubeflow: Kubeflow) -> None:
    (program,) = re.findall(r"<!-- python: monthly -->\n```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    kubeflow.add("fedhelp", versions=2)

    exec(program.replace("http://localhost:8888", kubeflow.address), {})

    (monthly,) = kubeflow.recurring
    parameters = monthly["runtime_config"]["parameters"]
    assert parameters == {"federation": "/etc/fedhelp/federation.yaml", "run_id": ""}
    assert set(parameters) <= set(yaml.safe_load((FOLDER / "fedhelp.yaml").read_text(encoding="utf-8"))["form"])
    assert monthly["pipeline_version_reference"] == {"pipeline_id": "p0", "pipeline_version_id": "v1"}
    assert monthly["service_account"] == "fedhelp-runs"
    assert monthly["trigger"]["cron_schedule"]["cron"] == "0 0 3 1 * *", "six fields, seconds first"
    assert (int(monthly["max_concurrency"]), monthly["no_catchup"], monthly["mode"]) == (1, True, "ENABLE")


def test_runs_of_a_blank_run_id_are_runs_of_their_own_and_a_clone_goes_on_or_is_told_what_differs(
    make_tiny: Callable[..., TinyFederation], capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = make_tiny(algorithm__method="fedavg")

    def started(job: str, **changes: Any) -> str:
        """The run that `check` starts for a run of Kubeflow whose form is FORM with some of its fields changed."""
        form = {"federation": str(tiny.path), "run_id": "", **FORM, **changes}
        return str(check.python_func(job_id=job, job_name="a run", nodes=[], **form)[2])

    assert [started("job-1"), started("job-2"), started("job-3", run_id="march")] == ["job-1", "job-2", "march"]
    assert started("job-4", run_id="march") == "march"
    with pytest.raises(SystemExit) as ended:
        started("job-5", run_id="march", rounds=3)
    assert ended.value.code == RunConflict.exit_code
    assert ("run 'march' was started with another config: algorithm.rounds: 2 expected, got 3; resume it with the config it was started with,"
            " or choose another run id") in capsys.readouterr().err
