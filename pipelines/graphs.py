"""The two pipelines over the same components: `fedhelp` (a node per silo) and `fedhelp-compact` (all silos in one task).

Imports kfp and the components' specs alone, so that the graphs compile on a machine without PyTorch. Called by compile.py
and local.py. With the same parameters both give bit-identical models on the CPU.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from fedhelp_components.aggregation.component import aggregation
from fedhelp_components.check.component import check
from fedhelp_components.check.form import FIELDS
from fedhelp_components.evaluation.component import evaluation
from fedhelp_components.federation.component import federation as federation_task
from fedhelp_components.promotion.component import promotion
from fedhelp_components.silo_training.component import silo_training
from fedhelp_components.soft_label_prefetch.component import soft_label_prefetch

Where = dict[str, Any]
Training = Callable[[Where, Any, Any], Any]
"""(where the run is, the silos' names, the prefetch task) -> sha256 of the final model."""


def _one_node_per_silo(where: Where, silos: Any, prefetched: Any) -> Any:
    with dsl.ParallelFor(silos) as silo:
        silo_training(**where, silo=silo).after(prefetched).set_caching_options(False)
    return aggregation(**where).after(prefetched).set_caching_options(False).outputs["Output"]


def _one_task(where: Where, _silos: Any, prefetched: Any) -> Any:
    return federation_task(**where, distillation_set=prefetched.output).set_caching_options(False).outputs["Output"]


def _graph(train: Training) -> Callable[..., str]:
    """The graph around `train`: the form, check and prefetch before it, evaluation and promotion after it."""

    def graph(
        federation: str = "/etc/fedhelp/federation.yaml",
        run_id: str = "",
        method: str = "fedhelp",
        normalisation: str = "silo",
        rounds: int = 50,
        local_epochs: int = 1,
        batch_size: int = 4,
        learning_rate: float = 0.001,
        temperature: float = 1.0,
        distillation_weight: float = 1.0,
        rank_weight: float = 0.2,
        weighting: str = "uniform",
        seed: int = 1,
        min_silos: int = 1,
        round_deadline: float = 3600.0,
        promotion_mode: str = "gate",
    ) -> str:
        """Train one small proxy model in all hospitals together; the defaults are the paper's.

        Args:
            federation: Path or s3:// URL of federation.yaml: the silos, the task, the public images and the store.
            run_id: Name of the run. Blank: this job's id. An earlier run's name goes on with that run.
            method: FedHelp, a compared method, or an ablation.
            normalisation: 'silo' keeps batch norms at home, 'shared' (the paper's) averages them.
            rounds: Federated rounds R.
            local_epochs: Passes over a silo's private images per round.
            batch_size: Private images per step.
            learning_rate: Adam's step size.
            temperature: T of Eq 2-4.
            distillation_weight: Lambda of Eq 2-4.
            rank_weight: Gamma of Eq 4.
            weighting: 'uniform' (the paper's), or 'samples': by number of training images.
            seed: All randomness comes from it.
            min_silos: Fewest updates that close a round.
            round_deadline: Seconds that a round waits for silos.
            promotion_mode: 'gate' compares with the champion, 'manual' leaves the candidate a candidate.

        Returns:
            What promotion decided.
        """
        parameters = locals()
        form = {name: parameters[name] for name in FIELDS}
        checked = check(federation=federation, run_id=run_id, job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **form).set_caching_options(False)
        where = {name: checked.outputs[name] for name in ("store", "endpoint_url", "run")}
        prefetched = soft_label_prefetch(**where)
        global_sha256 = train(where, checked.outputs["silos"], prefetched)
        evaluated = evaluation(**where, global_sha256=global_sha256).set_caching_options(False)
        decided = promotion(**where, model_version=evaluated.outputs["Output"]).set_caching_options(False)
        decision: str = decided.output
        return decision

    return graph


fedhelp = dsl.pipeline(name="fedhelp", description="FedHelp with a node per silo beside one aggregation node; they meet in the store.")(
    _graph(_one_node_per_silo))
fedhelp_compact = dsl.pipeline(
    name="fedhelp-compact", description="FedHelp with all rounds in one task: for hundreds of silos, and for one machine.")(_graph(_one_task))

PIPELINES = {"fedhelp": fedhelp, "fedhelp-compact": fedhelp_compact}
