"""A first federation.yaml with a comment a line, that runs as it is: small models, few rounds, no teacher yet.

Written by `fedhelp init` and at the end of `fedhelp data ingest`. A test reads what is written here through the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhelp_core.registry.tasks import TASKS

_SMALL_MODELS = {("classes", 2): ("resnet8", "resnet20"), ("mask", 2): ("unet2d-tiny", "unet2d"), ("mask", 3): ("unet3d-tiny", "unet3d")}
_SIDE = 64  # pixels: enough to see something by, and seconds a round on two cores
_ROUNDS = 20
_VOLUME = "  volume: {spacing: 3.0, patch_size: 32, window_size: 64}  # mm a voxel; voxels a side in training, and in an answer\n"

HEAD = """\
# What the hub knows of federation {name}. Every field, its default and its reason: docs/configuration.md.
# What is still wrong, all of it at once; the whole pipeline on this machine; a comparison of methods:
#   fedhelp check {file}
#   fedhelp run {file}
#   fedhelp simulate {file} --methods local,fedavg,fedhelp-no-api --seeds 1,2,3
version: 1
name: {name}

task:
  name: {task}
{classes}  image_size: {side}          # pixels a side that images are brought to; larger sees more and takes longer
{volume}
algorithm:
  method: fedhelp-no-api  # FedHelp without soft labels; `fedhelp` once public_set below is there
  rounds: {rounds}              # the paper: 50
  proxy_model: {proxy:<12}# what travels
  large_model: {large:<12}# what stays in large hospitals
  large_silos: {large_silos}          # so many, with most training images, keep a large model at home
{rank}
# Soft labels: unlabelled public images, and the foundation models that are asked about them, once (docs/teachers.md).
# public_set:
#   images: public        # a folder of pictures
#   teachers:
#     - {{name: teacher, kind: mlflow, uri: "models:/teacher/1", classes: 8}}

runtime: {{seed: 1}}        # the same seed ends in the same weights, bit for bit

store: {{url: {store}}}    # a folder beside this file, or s3://bucket/prefix where hospitals are elsewhere

silos:
{silos}"""


def starter(name: str, task: str, classes: Sequence[str], silos: Mapping[str, str], *, store: str = "store", file: str = "federation.yaml") -> str:
    """The text of a federation.yaml.

    Args:
        name: The federation's.
        task: Key of the task registry.
        classes: Class names; the task's own are left out of the file.
        silos: Hospital -> its `dispatch` as YAML in one line.
        store: Its URL, or a folder.
        file: The file's name as commands are given it.
    """
    entry = TASKS[task]
    proxy, large = _SMALL_MODELS[entry.answer, entry.dimensions]
    own = "" if tuple(classes) == entry.classes else f"  classes: {json.dumps(list(classes), ensure_ascii=False)}\n"
    top = min(5, len(classes) - 1)
    return HEAD.format(
        name=name, file=file, task=task, classes=own, side=_SIDE, volume=_VOLUME if entry.dimensions == 3 else "", rounds=_ROUNDS,
        proxy=proxy, large=large, large_silos=max(1, len(silos) // 3), store=json.dumps(store),
        rank=f"  rank_top_k: {top}           # of {len(classes)} classes (Eq 5)\n" if entry.answer == "classes" else "",
        silos="".join(f"  - {{name: {silo}, dispatch: {dispatch}}}\n" for silo, dispatch in silos.items()))


def on_this_machine(silo_config: Path | str) -> str:
    """`dispatch` of a hospital whose work is a process here."""
    return f"{{kind: process, silo_config: {json.dumps(str(silo_config))}}}"


def in_a_cluster(context: str) -> str:
    """`dispatch` of a hospital whose work is Jobs; a blank context is the cluster that the hub runs in."""
    return f"{{kind: kubernetes, context: {json.dumps(context)}}}" if context else "{kind: kubernetes}"
