"""Flower's FedAvgM, FedAdam and FedYogi on updates that lie in files. Runs in Flower's own environment.

    python app.py FOLDER

FOLDER/job.json says which strategy with which settings (benchmarks/flower_optimizers.py writes it), FOLDER/update-<round>-<silo>.npz
what each silo sends, FOLDER/start.npz the first weights. FOLDER/round-<number>.npz gets the weights of every round. Nothing is trained.

`as_published` gives FedAdam and FedYogi the start and the step size of their paper: scales begin at tau², and no step is corrected for that.
"""

import json
import sys
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from flwr.supercore.task_identity import TaskIdentity


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


def record_in(path: Path) -> ArrayRecord:
    with np.load(path) as found:
        return ArrayRecord({name: Array(np.array(found[name])) for name in found.files})


class FilesAsSilos:
    """What a strategy asks of Flower's grid: silo k sends the file of its round, whatever it is sent. No process is started."""

    def __init__(self, folder: Path, samples: list[int]) -> None:
        self.folder, self.samples = folder, samples

    def get_node_ids(self) -> list[int]:
        """One a silo, from 1 on."""
        return list(range(1, len(self.samples) + 1))

    def send_and_receive(self, messages, *, timeout=None) -> list[Message]:
        """A reply to each."""
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        number, silo = int(message.content["config"]["server-round"]), message.metadata.dst_node_id - 1
        return Message(reply_to=message, content=RecordDict({
            "arrays": record_in(self.folder / f"update-{number}-{silo}.npz"), "metrics": MetricRecord({"num-examples": self.samples[silo]})}))


def main(folder: Path) -> None:
    """All silos in every round, weighted by their numbers of images."""
    work = json.loads((folder / "job.json").read_text(encoding="utf-8"))

    def keep(number: int, arrays: ArrayRecord) -> MetricRecord:
        np.savez(folder / f"round-{number}.npz", **{name: array.numpy() for name, array in arrays.items()})
        return MetricRecord({"round": number})

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # messages carry it
    strategy = STRATEGIES[work["kind"]][work["as_published"]]
    silos = len(work["samples"])
    strategy(fraction_evaluate=0.0, min_train_nodes=silos, min_available_nodes=silos, **work["settings"]).start(
        grid=FilesAsSilos(folder, work["samples"]), initial_arrays=record_in(folder / "start.npz"), num_rounds=work["rounds"], evaluate_fn=keep)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
