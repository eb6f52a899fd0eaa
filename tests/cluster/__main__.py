"""A cluster for a person: `make cluster` starts one that outlives the command, `make cluster-down` ends it and removes its traces.

    python -m tests.cluster up [--grade 1|2] [--gpus 1]
    python -m tests.cluster down

Grade 1 is the control plane with one of KWOK's pretended nodes; grade 2 is a real node beside it (Linux, root).
"""

from __future__ import annotations

import argparse
import shutil
import sys

from tests.cluster.build import REPOSITORY, binary
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import Node
from tests.cluster.processes import Processes

STATE = REPOSITORY / ".cache" / "cluster" / "run"
_NODE_INDEX = STATE / "node-index"


def up(grade: int, gpus: int) -> None:
    """Start the cluster and say how to use it."""
    if Processes(STATE / "processes").pid("kube-apiserver") is not None:
        raise RuntimeError(f"a cluster runs already ({STATE}); use it, or end it first: make cluster-down")
    shutil.rmtree(STATE, ignore_errors=True)
    cluster = ControlPlane(STATE, outlive=True)
    cluster.__enter__()
    if grade == 1:
        cluster.add_kwok_nodes(1, gpus=gpus)
    else:
        node = Node(cluster, gpus=gpus, outlive=True).start()
        _NODE_INDEX.write_text(str(node.index))
    print(f"""A Kubernetes {"node" if grade == 2 else "control plane"} is running.

  export KUBECONFIG={cluster.kubeconfig()}
  {binary("kubectl")} get nodes
  {binary("helm")} install hospital-a helm/fedhelp-silo --namespace hospital-a --create-namespace --values ...

{"Images: make images, then python -m tests.cluster import <image>." if grade == 2 else "Pods only pretend to run: KWOK's Jobs succeed at once."}
make cluster-down ends it.""")


def import_images(images: list[str]) -> None:
    """Make images of the local Docker engine known to the running node."""
    _node().import_images(*images)


def down() -> None:
    """End what `up` started."""
    if _NODE_INDEX.exists():
        _node().stop()
    Processes(STATE / "processes").stop_all()
    shutil.rmtree(STATE, ignore_errors=True)
    print("The cluster has ended.")


def _node() -> Node:
    try:
        index = int(_NODE_INDEX.read_text())
    except FileNotFoundError as error:
        raise RuntimeError("no node is running; start one first: make cluster") from error
    return Node(ControlPlane(STATE), index=index)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help="start a cluster")
    starting.add_argument("--grade", type=int, choices=(1, 2), default=2, help="1: control plane and pretended nodes; 2: a real node (default)")
    starting.add_argument("--gpus", type=int, default=1, help="nvidia.com/gpu that the node offers (default 1)")
    importing = commands.add_parser("import", help="import images of the local Docker engine into the node")
    importing.add_argument("images", nargs="+")
    commands.add_parser("down", help="end it and remove its traces")
    arguments = parser.parse_args()
    try:
        if arguments.command == "up":
            up(arguments.grade, arguments.gpus)
        elif arguments.command == "import":
            import_images(arguments.images)
        else:
            down()
    except RuntimeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
