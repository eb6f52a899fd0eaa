"""The kfp component `soft_label_prefetch`: kfp and the standard library only."""

from kfp import dsl

from fedhelp_components.images import SILO_IMAGE


@dsl.component(base_image=SILO_IMAGE, install_kfp_package=False)
def soft_label_prefetch(store: str, endpoint_url: str, run: str, teachers: dsl.Output[dsl.Metrics], shard: str = "", asked: list = []) -> str:  # noqa: B006
    """Ask the teachers about every public image that no earlier run asked about, and build the distillation set.

    Args:
        store: Where the run's objects are.
        endpoint_url: S3 endpoint other than AWS, or blank.
        run: Run id.
        teachers: Per teacher what was asked, known before, retried, in doubt and failed, the cost and the time of a request.
        shard: Number and count such as 1/4, to ask about that share of the images and build no set. Blank or 1/1 stands for everything.
        asked: What the shards' tasks returned, which orders this one after them.

    Returns:
        sha256 of the distillation set; blank where the method needs none, and of a shard.
    """
    from fedhelp_components.soft_label_prefetch.__main__ import figures_of
    from fedhelp_components.soft_label_prefetch.__main__ import run as ask_teachers
    from fedhelp_core.processes import task

    with task("soft_label_prefetch") as ends_with:
        sha256 = ask_teachers(store=store, endpoint_url=endpoint_url, run_id=run, shard=shard)
        for name, value in figures_of(store, endpoint_url, run).items():
            teachers.log_metric(name, value)
        ends_with(f"distillation set {sha256[:12]} is ready" if sha256 else f"share {shard} is asked" if shard else "no soft labels are needed")
        return sha256
