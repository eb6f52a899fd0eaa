"""Three hospitals on real nodes train together; whatever happens on the way, the model is the one that a simulation gives."""

from __future__ import annotations

import pytest

from tests.cluster.e2e.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


def test_three_rounds_in_pods_end_in_the_model_of_the_simulation(world: World) -> None:
    run = world.new_run()
    run.run(world.arguments(run_id="undisturbed"))
    assert world.final_sha256("undisturbed") == world.simulated_sha256()
