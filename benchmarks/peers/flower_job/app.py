"""FedAvg of four clients that send back what they get, in Flower's simulation. Runs in Flower's own environment.

    python app.py CLIENTS ROUNDS FOLDER

Appends a time to FOLDER/ticks.txt after each round (the first is before round 1), and saves a checkpoint, as NVFLARE does
and as our commit does.
"""

import os
import sys
import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

CONVOLUTIONS = [(16, 3, 3, 3)] + [(16, 16, 3, 3)] * 6 + [(32, 16, 3, 3)] + [(32, 32, 3, 3)] * 5 + [(64, 32, 3, 3)] + [(64, 64, 3, 3)] * 5

client_app = ClientApp()
server_app = ServerApp()


def payload() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    shapes = [shape for convolution in CONVOLUTIONS for shape in (convolution, *[(convolution[0],)] * 4)] + [(10, 64), (10,)]
    return [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Identity."""
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over all clients, without evaluation in them."""
    clients, rounds, folder = int(os.environ["BENCH_CLIENTS"]), int(os.environ["BENCH_ROUNDS"]), os.environ["BENCH_FOLDER"]

    def tick(number: int, arrays: ArrayRecord) -> MetricRecord:
        np.savez(os.path.join(folder, "checkpoint.npz"), *arrays.to_numpy_ndarrays())
        with open(os.path.join(folder, "ticks.txt"), "a", encoding="utf-8") as file:
            file.write(f"{time.time()}\n")
        return MetricRecord({"round": number})

    FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients).start(
        grid=grid, initial_arrays=ArrayRecord(payload()), num_rounds=rounds, evaluate_fn=tick)


if __name__ == "__main__":
    os.environ["BENCH_CLIENTS"], os.environ["BENCH_ROUNDS"], os.environ["BENCH_FOLDER"] = sys.argv[1:4]
    cpus = (os.cpu_count() or 1) / int(sys.argv[1])  # one Ray actor per client: all four at once
    run_simulation(
        server_app, client_app, num_supernodes=int(sys.argv[1]),
        backend_config={"client_resources": {"num_cpus": min(1.0, cpus), "num_gpus": 0.0}})
