"""The kfp component `silo_training`: kfp and the standard library only."""

from kfp import dsl

from fedhelp_components.images import HUB_IMAGE


@dsl.component(base_image=HUB_IMAGE, install_kfp_package=False)
def silo_training(store: str, endpoint_url: str, run: str, silo: str) -> str:
    """Keep one silo's training going until the last round is committed; it meets aggregation in the store.

    Args:
        store: Where the run's objects are.
        endpoint_url: S3 endpoint other than AWS, or blank.
        run: Run id.
        silo: The silo's name.

    Returns:
        'trained', 'left out: ' and the reason, or 'not in this run: ' and its silos.
    """
    from fedhelp_components.silo_training.__main__ import run as train
    from fedhelp_core.processes import task

    with task("silo_training") as ends_with:
        how = train(store=store, endpoint_url=endpoint_url, run_id=run, silo=silo, fixed_node=True)
        ends_with(f"silo {silo}: {how}")
        return how
