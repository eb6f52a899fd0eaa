"""The kfp component `aggregation`: kfp and the standard library only."""

from kfp import dsl

from fedhelp_components.images import HUB_IMAGE


@dsl.component(base_image=HUB_IMAGE, install_kfp_package=False)
def aggregation(store: str, endpoint_url: str, run: str, rounds: dsl.Output[dsl.Markdown]) -> str:
    """Close round after round: wait for the silos' updates, check them, average them (Eq 7), commit.

    Args:
        store: Where the run's objects are.
        endpoint_url: S3 endpoint other than AWS, or blank.
        run: Run id.
        rounds: One line a round: who took part, losses, seconds.

    Returns:
        sha256 of the final global model.
    """
    from fedhelp_components.aggregation.__main__ import run as aggregate
    from fedhelp_core.processes import task

    with task("aggregation") as ends_with:
        sha256 = aggregate(store=store, endpoint_url=endpoint_url, run_id=run, progress_file=rounds.path)
        ends_with(f"all rounds are closed; the global model is {sha256[:12]}")
        return sha256
