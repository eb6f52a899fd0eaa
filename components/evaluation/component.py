"""The kfp component `evaluation`: kfp and the standard library only."""

from typing import NamedTuple

from kfp import dsl

from fedhelp_components.images import SILO_IMAGE


@dsl.component(base_image=SILO_IMAGE, install_kfp_package=False)
def evaluation(
    store: str,
    endpoint_url: str,
    run: str,
    global_sha256: str,
    scores: dsl.Output[dsl.Metrics],
    confusion_matrix: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
) -> NamedTuple("Evaluated", [("model_version", str), ("left_out", str)]):  # type: ignore[valid-type]
    """Have every silo score its model on its own test images; register the global model as a candidate; write the report.

    Args:
        store: Where the run's objects are.
        endpoint_url: S3 endpoint other than AWS, or blank.
        run: Run id.
        global_sha256: The final global model, as training returned it; orders the two.
        scores: The task's main score of every silo, small silos' mean, worst silo; the means by its other scores; how many silos were left out.
        confusion_matrix: Confusion matrix summed over all silos' test images; of pixels where the task is segmentation.
        report: The run's HTML report.

    Returns:
        Version of the registered model, and the silos that missed rounds or the evaluation, or blank.
    """
    from fedhelp_components.evaluation.__main__ import narrow
    from fedhelp_components.evaluation.__main__ import run as evaluate
    from fedhelp_core.processes import task

    with task("evaluation") as ends_with:
        done = evaluate(store=store, endpoint_url=endpoint_url, run_id=run, report_file=report.path)
        for name, value in done.metrics.items():
            scores.log_metric(name, value)
        confusion_matrix.log_confusion_matrix(narrow(done.classes), done.confusion)
        ends_with(f"version {done.model_version} is registered as candidate; silos left out: {len(done.left_out)}")
        return (done.model_version, ", ".join(done.left_out))
