"""Three hospitals on real nodes train together: charts by helm, tasks and training as pods, and the model of the simulation at the end."""

from __future__ import annotations

import pytest

from tests.cluster.e2e.graph import GraphRun
from tests.cluster.e2e.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
RUN_ID = "undisturbed"


@pytest.fixture(scope="module")
def finished(world: World) -> GraphRun:
    """One run of three rounds that nothing disturbed."""
    run = world.new_run()
    run.run({"run_id": RUN_ID})  # the rest of the form as it opens: the federation's own settings
    return run


def test_the_model_is_the_simulations_bit_for_bit(world: World, finished: GraphRun) -> None:
    assert world.final_sha256(RUN_ID) == world.simulated_sha256()


def test_the_hospitals_are_trained_side_by_side_between_prefetch_and_evaluation(world: World, finished: GraphRun) -> None:
    silos = [finished.task(f"train-{hospital.name}") for hospital in world.hospitals]
    together = [*silos, finished.task("aggregation")]
    in_order = [finished.task(name) for name in ("check", "soft-label-prefetch", "evaluation", "promotion")]
    assert in_order[0].ended <= in_order[1].started and in_order[2].ended <= in_order[3].started
    assert in_order[1].ended <= min(one.started for one in together)
    assert max(one.started for one in together) < min(one.ended for one in together)
    assert max(one.ended for one in together) <= in_order[2].started or finished.task("aggregation").ended <= in_order[2].started


def test_every_hospital_ran_jobs_of_its_own_template_with_a_gpu_and_they_succeeded(world: World, finished: GraphRun) -> None:
    for hospital in world.hospitals:
        jobs = hospital.jobs(f"fedhelp.io/run={RUN_ID}")
        assert {job["metadata"]["labels"]["fedhelp.io/action"] for job in jobs} == {"check", "train", "evaluate"}
        for job in jobs:
            container = job["spec"]["template"]["spec"]["containers"][0]
            assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
            assert job["status"].get("succeeded") == 1
