"""The kfp component `evaluation`: kfp and the standard library only."""

from kfp import dsl

from fedhelp_components.images import SILO_IMAGE


@dsl.component(base_image=SILO_IMAGE, install_kfp_package=False)
def evaluation(
    store: str,
    endpoint_url: str,
    run: str,
    global_sha256: str,
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Have every silo score its model on its own test images; register the global model as a candidate; write the report.

    Args:
        store: Where the run's objects are.
        endpoint_url: S3 endpoint other than AWS, or blank.
        run: Run id.
        global_sha256: The final global model, as training returned it; orders the two.
        metrics: The task's main score of every silo, small silos' mean, worst silo; the means by its other scores.
        confusion: Confusion matrix summed over all silos' test images; of pixels where the task is segmentation.
        report: The run's HTML report.

    Returns:
        Version of the registered model.
    """
    from fedhelp_components.evaluation.__main__ import run as evaluate
    from fedhelp_core.processes import task

    with task("evaluation"):
        done = evaluate(store=store, endpoint_url=endpoint_url, run_id=run, report_file=report.path)
        for name, value in done.metrics.items():
            metrics.log_metric(name, value)
        confusion.log_confusion_matrix(done.classes, done.confusion)
        return done.model_version
