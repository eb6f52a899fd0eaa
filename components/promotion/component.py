"""The kfp component `promotion`: kfp and the standard library only."""

from kfp import dsl

from fedhelp_components.images import HUB_IMAGE


@dsl.component(base_image=HUB_IMAGE, install_kfp_package=False)
def promotion(store: str, endpoint_url: str, run: str, model_version: str) -> str:
    """Compare the candidate with the champion on the silos' own test images, and promote it if the gate lets it through.

    Args:
        store: Where the run's objects are.
        endpoint_url: S3 endpoint other than AWS, or blank.
        run: Run id.
        model_version: The candidate, as evaluation registered it.

    Returns:
        What was decided, and why.
    """
    from fedhelp_components.promotion.__main__ import run as decide
    from fedhelp_core.processes import task

    with task("promotion") as ends_with:
        decision = decide(store=store, endpoint_url=endpoint_url, run_id=run, model_version=model_version)
        ends_with(f"promotion: {decision}")
        return decision
