"""The kfp component `soft_label_prefetch`: kfp and the standard library only."""

from kfp import dsl

from fedhelp_components.images import SILO_IMAGE


@dsl.component(base_image=SILO_IMAGE, install_kfp_package=False)
def soft_label_prefetch(store: str, endpoint_url: str, run: str) -> str:
    """Ask the teachers about every public image that no earlier run asked about, and build the distillation set.

    Args:
        store: Where the run's objects are.
        endpoint_url: S3 endpoint other than AWS, or blank.
        run: Run id.

    Returns:
        sha256 of the distillation set; blank where the method needs none.
    """
    from fedhelp_components.entry import task
    from fedhelp_components.forked import run_component

    with task("soft_label_prefetch"):
        return str(run_component("soft_label_prefetch", store=store, endpoint_url=endpoint_url, run_id=run))
