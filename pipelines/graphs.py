"""The two pipelines over the same components: `fedhelp` (a node per silo) and `fedhelp-compact` (all silos in one task).

In `fedhelp` task `silo-training` stands for every silo that is known when the graph is compiled: compile.py, or the hub's chart,
puts one for each in its place. Loop `hospitals` trains the silos of a file that a run names itself.
Imports kfp and the components' specs alone, so that the graphs compile on a machine without PyTorch. Called by compile.py
and local.py. With the same parameters both give bit-identical models on the CPU.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl, kubernetes

from fedhelp_components.aggregation.component import aggregation
from fedhelp_components.check.component import check
from fedhelp_components.check.form import FIELDS
from fedhelp_components.evaluation.component import evaluation
from fedhelp_components.federation.component import federation as federation_task
from fedhelp_components.left_out.component import left_out
from fedhelp_components.promotion.component import promotion
from fedhelp_components.silo_training.component import silo_training
from fedhelp_components.soft_label_prefetch.component import soft_label_prefetch

FEDERATION_CONFIG_MAP = "fedhelp-federation"
STORE_SECRET = "fedhelp-store"
MLFLOW_SECRET = "fedhelp-mlflow"
KUBECONFIG_SECRET = "fedhelp-kubeconfig"
TEACHERS_SECRET, TEACHERS_FOLDER = "fedhelp-teachers", "/etc/fedhelp-teachers"
_KUBECONFIG_FOLDER = "/etc/fedhelp-kubeconfig"
_HUB_KEYS = ("FEDHELP_PUSHGATEWAY", "FEDHELP_SERVICE_ACCOUNT", "FEDHELP_STORE_ENDPOINT")
_STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")
_MLFLOW_KEYS = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

SILO = "HOSPITAL"
"""In place of a silo's name in the task that stands for all silos that are known. No silo can be called so."""

Where = dict[str, Any]
Prefetch = Callable[[Where, Any], Any]
"""(where the run is, the shares of the public images) -> the task that ends with the distillation set."""
Training = Callable[[Where, Any, Any], Any]
"""(where the run is, silos that have no node of their own, the prefetch task) -> sha256 of the final model."""


def _in_hub(task: Any, *, cached: bool = False) -> Any:
    """`task` with what chart fedhelp-hub puts beside it, where that exists: federation.yaml, credentials, kubeconfig."""
    kubernetes.use_config_map_as_volume(task, config_map_name=FEDERATION_CONFIG_MAP, mount_path="/etc/fedhelp", optional=True)
    kubernetes.use_config_map_as_env(
        task, config_map_name=FEDERATION_CONFIG_MAP, config_map_key_to_env={key: key for key in _HUB_KEYS}, optional=True)
    kubernetes.use_secret_as_volume(task, secret_name=KUBECONFIG_SECRET, mount_path=_KUBECONFIG_FOLDER, optional=True)
    task.set_env_variable("KUBECONFIG", f"{_KUBECONFIG_FOLDER}/config")
    task.set_env_variable("FEDHELP_TRUST", "/etc/fedhelp/trust.json")  # where there is none, nothing that a federation.yaml names is trusted
    for secret, keys in ((STORE_SECRET, _STORE_KEYS), (MLFLOW_SECRET, _MLFLOW_KEYS)):
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env={key: key for key in keys}, optional=True)
    return task if cached else task.set_caching_options(False)


def _asking(**inputs: Any) -> Any:
    """A prefetch with what teachers want to see: a file per key of Secret fedhelp-teachers."""
    task = _in_hub(soft_label_prefetch(**inputs), cached=True)
    kubernetes.use_secret_as_volume(task, secret_name=TEACHERS_SECRET, mount_path=TEACHERS_FOLDER, optional=True)
    return task


def _asked_in_shards(where: Where, shards: Any) -> Any:
    """A node per share beside each other, then one that builds the set; with one share the first builds it and the last finds it."""
    with dsl.ParallelFor(shards) as shard:
        asked = _asking(**where, shard=shard)
    return _asking(**where, asked=dsl.Collected(asked.outputs["Output"]))


def _asked_in_one_task(where: Where, _shards: Any) -> Any:
    return _asking(**where)


def _one_node_per_silo(where: Where, silos: Any, prefetched: Any) -> Any:
    _in_hub(silo_training(**where, silo=SILO).after(prefetched))
    with dsl.ParallelFor(silos) as silo:
        _in_hub(silo_training(**where, silo=silo).after(prefetched))
    return _in_hub(aggregation(**where).after(prefetched)).outputs["Output"]


def _one_task(where: Where, _silos: Any, prefetched: Any) -> Any:
    return _in_hub(federation_task(**where, distillation_set=prefetched.outputs["Output"])).outputs["Output"]


def _graph(prefetch: Prefetch, train: Training) -> Callable[..., str]:
    """The graph around both: the form and check before them, evaluation and promotion after them."""

    def graph(
        federation: str = "/etc/fedhelp/federation.yaml",
        run_id: str = "",
        method: str = "fedhelp",
        normalisation: str = "shared",
        rounds: int = 50,
        local_epochs: int = 1,
        learning_rate: float = 0.001,
        seed: int = 1,
        promotion_mode: str = "gate",
    ) -> str:
        """Train one small proxy model in all hospitals together; the defaults are the paper's.

        Args:
            federation: Path or s3:// URL of federation.yaml: the silos, the task, the public images and the store.
            run_id: Name of the run. Blank: this job's id. An earlier run's name goes on with that run.
            method: FedHelp, a compared method, or an ablation.
            normalisation: 'shared' (the paper's) averages batch norms, 'silo' keeps them at home.
            rounds: Federated rounds R.
            local_epochs: Passes over a silo's private images per round.
            learning_rate: Adam's step size.
            seed: All randomness comes from it.
            promotion_mode: 'gate' compares with the champion, 'manual' leaves the candidate a candidate.

        Returns:
            What promotion decided.
        """
        parameters = locals()
        form = {name: parameters[name] for name in FIELDS}
        checked = _in_hub(check(
            federation=federation, run_id=run_id, job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, job_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER, nodes=[SILO],
            **form))
        where = {name: checked.outputs[name] for name in ("store", "endpoint_url", "run")}
        prefetched = prefetch(where, checked.outputs["shards"])
        global_sha256 = train(where, checked.outputs["in_loop"], prefetched)
        evaluated = _in_hub(evaluation(**where, global_sha256=global_sha256))
        with dsl.If(evaluated.outputs["left_out"] != ""):
            _in_hub(left_out(**where, silos=evaluated.outputs["left_out"]))
        decided = _in_hub(promotion(**where, model_version=evaluated.outputs["model_version"]))
        decision: str = decided.output
        return decision

    return graph


fedhelp = dsl.pipeline(name="fedhelp", description="FedHelp with a node per silo beside one aggregation node; they meet in the store.")(
    _graph(_asked_in_shards, _one_node_per_silo))
fedhelp_compact = dsl.pipeline(
    name="fedhelp-compact", description="FedHelp with all rounds in one task: for hundreds of silos, and for one machine.")(
    _graph(_asked_in_one_task, _one_task))

NODES = {
    "fedhelp": {
        "for-loop-1": "shares of the public images", "soft-label-prefetch": "ask teachers", "soft-label-prefetch-2": "distillation set",
        "silo-training": f"train {SILO}", "for-loop-2": "hospitals", "silo-training-2": "train",
        "condition-3": "hospitals left out", "left-out": "left out",
    },
    "fedhelp-compact": {
        "soft-label-prefetch": "distillation set", "federation": "train all hospitals", "condition-1": "hospitals left out", "left-out": "left out",
    },
}
"""Task -> what the UI calls its node, where kfp's own name is not how people read it."""

PIPELINES = {"fedhelp": fedhelp, "fedhelp-compact": fedhelp_compact}
