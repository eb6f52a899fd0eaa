"""The kfp component `check`: kfp and the standard library only, so that graphs compile without the product installed."""

from typing import NamedTuple

from kfp import dsl

from fedhelp_components.images import HUB_IMAGE


@dsl.component(base_image=HUB_IMAGE, install_kfp_package=False)
def check(
    federation: str,
    run_id: str,
    job_id: str,
    job_name: str,
    nodes: list,
    method: str,
    normalisation: str,
    rounds: int,
    local_epochs: int,
    learning_rate: float,
    seed: int,
    promotion_mode: str,
) -> NamedTuple("Checked", [("store", str), ("endpoint_url", str), ("run", str), ("in_loop", list), ("shards", list)]):  # type: ignore[valid-type]
    """Validate the federation's file and every silo's data before anything expensive starts, and freeze the run.

    Args:
        federation: Path or s3:// URL of federation.yaml.
        run_id: Name of the run; blank: the pipeline job's id. The same name again goes on with that run.
        job_id: The pipeline job's id.
        job_name: The pipeline job's name, which the run's page in MLflow gets.
        nodes: Silos that have a node of their own in this graph.
        method: FedHelp, a compared method, or an ablation.
        normalisation: Whether batch norms stay in the silo.
        rounds: Federated rounds.
        local_epochs: Passes over a silo's private images per round.
        learning_rate: Adam's step size.
        seed: All randomness comes from it.
        promotion_mode: Gate or manual.

    Returns:
        Where the run's objects are, its id, its silos that have no node of their own, and the shares in which its teachers are asked.
    """
    from fedhelp_components.check.__main__ import Shown, run_form
    from fedhelp_core.processes import task

    with task("check") as ends_with:
        checked = run_form(
            federation, run_id or job_id,
            {
                "method": method, "normalisation": normalisation, "rounds": rounds, "local_epochs": local_epochs,
                "learning_rate": learning_rate, "seed": seed, "promotion_mode": promotion_mode,
            },
            Shown(name=job_name, job=job_id),
        )
        ends_with(f"run {checked.run}: {len(checked.silos)} silos have checked their data")
        return (checked.store, checked.endpoint_url, checked.run, [silo for silo in checked.silos if silo not in nodes], checked.shards)
