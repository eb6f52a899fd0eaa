"""The kfp component `federation`: kfp and the standard library only."""

from kfp import dsl

from fedhelp_components.images import HUB_IMAGE


@dsl.component(base_image=HUB_IMAGE, install_kfp_package=False)
def federation(store: str, endpoint_url: str, run: str, distillation_set: str, rounds: dsl.Output[dsl.Markdown]) -> str:
    """All rounds in one task: supervise every silo and aggregate (the compact form of silo_training beside aggregation).

    Args:
        store: Where the run's objects are.
        endpoint_url: S3 endpoint other than AWS, or blank.
        run: Run id.
        distillation_set: sha256 that soft_label_prefetch returned; orders the two.
        rounds: One line a round: who took part, losses, seconds.

    Returns:
        sha256 of the final global model.
    """
    from fedhelp_components.federation.__main__ import run as federate
    from fedhelp_core.processes import task

    with task("federation") as ends_with:
        sha256 = federate(store=store, endpoint_url=endpoint_url, run_id=run, progress_file=rounds.path)
        ends_with(f"all rounds are closed; the global model is {sha256[:12]}")
        return sha256
