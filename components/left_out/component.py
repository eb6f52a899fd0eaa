"""The kfp component `left_out`: kfp and the standard library only."""

from kfp import dsl

from fedhelp_components.images import HUB_IMAGE


@dsl.component(base_image=HUB_IMAGE, install_kfp_package=False)
def left_out(store: str, endpoint_url: str, run: str, silos: str, reasons: dsl.Output[dsl.Markdown]) -> str:
    """Say which hospitals missed rounds or the evaluation. A graph has this node run only where there are some.

    Args:
        store: Where the run's objects are.
        endpoint_url: S3 endpoint other than AWS, or blank.
        run: Run id.
        silos: Their names, as evaluation returned them; orders the two.
        reasons: A table: silo, what it missed, and why.

    Returns:
        'left out: ' and their names.
    """
    from fedhelp_components.left_out.__main__ import run as tell
    from fedhelp_core.processes import task

    with task("left_out") as ends_with:
        told = tell(store=store, endpoint_url=endpoint_url, run_id=run, silos=silos, reasons_file=reasons.path)
        ends_with(told)
        return told
