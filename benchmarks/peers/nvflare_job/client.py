"""A client that sends back what it gets; appends the time of each receipt to $BENCH_FOLDER/<site>.txt."""

import os
import time

import nvflare.client as flare

flare.init()
site = flare.system_info()["site_name"]
while flare.is_running():
    received = flare.receive()
    if received is None:
        break
    with open(os.path.join(os.environ["BENCH_FOLDER"], f"{site}.txt"), "a", encoding="utf-8") as file:
        file.write(f"{time.time()}\n")
    flare.send(flare.FLModel(params=received.params, metrics={"accuracy": 0.0}, meta={"NUM_STEPS_CURRENT_ROUND": 1}))
