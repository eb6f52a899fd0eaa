"""Flower's FedAvgM, FedAdam and FedYogi on updates that lie in files. Runs in Flower's own environment.

    python app.py FOLDER

FOLDER/job.json says which strategy with which settings (benchmarks/flower_optimizers.py writes it), FOLDER/update-<round>-<silo>.npz holds what each
silo sends, FOLDER/start.npz the first weights. FOLDER/round-<number>.npz gets the weights of every round. Nothing is trained.

`as_published` gives FedAdam and FedYogi the start and the step size of their paper: scales begin at tau², and no step is corrected for that.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from flwr.simulation import run_simulation

client_app = ClientApp()
server_app = ServerApp()


class PublishedStart:
    """Before a strategy that has `v_t`, `eta`, `beta_1`, `beta_2` and `tau`."""

    published_eta = 0.0

    def aggregate_train(self, server_round, replies):
        """The strategy's own, from the paper's start."""
        if not self.v_t:
            self.v_t = {name: np.full_like(array, self.tau**2, dtype=array.dtype) for name, array in self.current_arrays.items()}
            self.published_eta = self.eta
        if isinstance(self, FedAdam):  # takes back what Flower multiplies by
            self.eta = self.published_eta * (1 - self.beta_1 ** (server_round + 1.0)) / np.sqrt(1 - self.beta_2 ** (server_round + 1.0))
        return super().aggregate_train(server_round, replies)


class PublishedAdam(PublishedStart, FedAdam):
    """FedAdam as its paper has it."""


class PublishedYogi(PublishedStart, FedYogi):
    """FedYogi as its paper has it."""


STRATEGIES = {"momentum": (FedAvgM, FedAvgM), "adam": (FedAdam, PublishedAdam), "yogi": (FedYogi, PublishedYogi)}


def folder() -> Path:
    return Path(os.environ["BENCH_FOLDER"])


def job() -> dict:
    return json.loads((folder() / "job.json").read_text(encoding="utf-8"))


def record_in(path: Path) -> ArrayRecord:
    with np.load(path) as found:
        return ArrayRecord({name: Array(np.array(found[name])) for name in found.files})


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """What the silo sends in this round, whatever it was sent."""
    number, silo = int(message.content["config"]["server-round"]), int(context.node_config["partition-id"])
    content = RecordDict({"arrays": record_in(folder() / f"update-{number}-{silo}.npz"), "metrics": MetricRecord({
        "num-examples": job()["samples"][silo]})})
    return Message(content=content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """All silos in every round, weighted by their numbers of images."""
    work = job()

    def keep(number: int, arrays: ArrayRecord) -> MetricRecord:
        np.savez(folder() / f"round-{number}.npz", **{name: array.numpy() for name, array in arrays.items()})
        return MetricRecord({"round": number})

    strategy = STRATEGIES[work["kind"]][work["as_published"]]
    silos = len(work["samples"])
    strategy(fraction_evaluate=0.0, min_train_nodes=silos, min_available_nodes=silos, **work["settings"]).start(
        grid=grid, initial_arrays=record_in(folder() / "start.npz"), num_rounds=work["rounds"], evaluate_fn=keep)


if __name__ == "__main__":
    os.environ["BENCH_FOLDER"] = sys.argv[1]
    run_simulation(
        server_app, client_app, num_supernodes=len(job()["samples"]),
        backend_config={"client_resources": {"num_cpus": os.cpu_count() or 1, "num_gpus": 0.0}})
