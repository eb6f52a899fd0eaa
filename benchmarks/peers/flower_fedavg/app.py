"""FedAvg in Flower's simulation, with a training loop written for Flower. Runs in Flower's own environment.

    python app.py FOLDER

FOLDER/job.json says what is trained (benchmarks/flower_agreement.py writes it), FOLDER/silo-<number>.npz holds each silo's arrays,
FOLDER/start.npz the first weights. FOLDER/round-<number>.npz gets the weights of every round. Of FedHelp it uses the network's class alone:
averaging and rounds are Flower's, and the local work is the few lines of `train`.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from fedhelp_core.models.build import build_model

client_app = ClientApp()
server_app = ServerApp()


def folder() -> Path:
    return Path(os.environ["BENCH_FOLDER"])


def job() -> dict:
    return json.loads((folder() / "job.json").read_text(encoding="utf-8"))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """An epoch of Adam over the silo's images; Adam's moments stay in the silo from round to round."""
    work, number, silo = job(), int(message.content["config"]["server-round"]), int(context.node_config["partition-id"])
    torch.set_num_threads(work["threads"])
    with np.load(folder() / f"silo-{silo}.npz") as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    model = build_model(work["model"], outputs=work["classes"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    model = model.to(memory_format=torch.channels_last).train()
    adam = torch.optim.Adam(model.parameters(), lr=work["learning_rate"], weight_decay=work["weight_decay"], fused=True)
    moments = folder() / f"adam-{silo}.pt"
    if moments.exists():
        adam.load_state_dict(torch.load(moments, weights_only=True))
    generator = torch.Generator().manual_seed(work["orders"][number - 1][silo])
    for _ in range(work["local_epochs"]):
        for chosen in torch.randperm(len(images), generator=generator).split(work["batch_size"]):
            pixels = images[chosen].to(torch.float32, memory_format=torch.channels_last).mul(1 / (255 * 0.25)).sub(2)
            adam.zero_grad()
            torch.nn.functional.cross_entropy(model(pixels), labels[chosen]).backward()
            adam.step()
    torch.save(adam.state_dict(), moments)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(images)})})
    return Message(content=content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """All silos in every round, weighted by their numbers of images; evaluated by who asked for this."""
    work = job()

    def keep(number: int, arrays: ArrayRecord) -> MetricRecord:
        np.savez(folder() / f"round-{number}.npz", **{name: tensor.numpy() for name, tensor in arrays.to_torch_state_dict().items()})
        return MetricRecord({"round": number})

    with np.load(folder() / "start.npz") as start:
        first = ArrayRecord({name: torch.from_numpy(np.array(start[name])) for name in start.files})
    silos = work["silos"]
    FedAvg(fraction_evaluate=0.0, min_train_nodes=silos, min_available_nodes=silos).start(
        grid=grid, initial_arrays=first, num_rounds=len(work["orders"]), evaluate_fn=keep)


if __name__ == "__main__":
    os.environ["BENCH_FOLDER"] = sys.argv[1]
    run_simulation(
        server_app, client_app, num_supernodes=job()["silos"],
        backend_config={"client_resources": {"num_cpus": os.cpu_count() or 1, "num_gpus": 0.0}})  # one actor: one process that imports PyTorch
