"""NVFLARE's FedAvg recipe in its simulator, as shipped. Runs in NVFLARE's own environment.

    python job.py CLIENTS ROUNDS FOLDER
"""

import os
import sys

from model import Payload
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

if __name__ == "__main__":
    clients, rounds, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.environ["BENCH_FOLDER"] = folder
    recipe = FedAvgRecipe(name="bench", model=Payload(), min_clients=clients, num_rounds=rounds, train_script="client.py")
    recipe.execute(SimEnv(num_clients=clients, workspace_root=os.path.join(folder, "workspace"))).get_result()
