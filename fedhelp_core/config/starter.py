"""A first federation.yaml with a comment a line, that runs as it is: small models, few rounds, no teacher yet.

Written by `fedhelp init` and at the end of `fedhelp data ingest`. A test reads what is written here through the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedhelp_core.config.task import TaskConfig, filled
from fedhelp_core.registry.tasks import PRESETS

# whether it answers about every pixel, and dimensions -> proxy and large model
_SMALL_MODELS = {(False, 2): ("resnet8", "resnet20"), (True, 2): ("unet2d-tiny", "unet2d"), (True, 3): ("unet3d-tiny", "unet3d")}
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
{task}  image_size: {side}          # pixels a side that images are brought to; larger sees more and takes longer
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


def starter(name: str, task: TaskConfig, silos: Mapping[str, str], *, store: str = "store", file: str = "federation.yaml") -> str:
    """The text of a federation.yaml.

    Args:
        name: The federation's.
        task: What is learnt; what its preset says is left out of the file.
        silos: Hospital -> its `dispatch` as YAML in one line.
        store: Its URL, or a folder.
        file: The file's name as commands are given it.
    """
    proxy, large = _SMALL_MODELS[task.per_pixel, task.dimensions]
    top = min(5, len(task.classes) - 1)
    volume = (f"  volume: {json.dumps(task.volume.model_dump())}\n" if "volume" in task.model_fields_set else _VOLUME) if task.dimensions == 3 else ""
    return HEAD.format(
        name=name, file=file, task=_fields(task), side=task.image_size, volume=volume, rounds=_ROUNDS, proxy=proxy, large=large,
        large_silos=max(1, len(silos) // 3), store=json.dumps(store),
        rank="" if task.per_pixel else f"  rank_top_k: {top}           # of {len(task.classes)} classes (Eq 5)\n",
        silos="".join(f"  - {{name: {silo}, dispatch: {dispatch}}}\n" for silo, dispatch in silos.items()))


def _fields(task: TaskConfig) -> str:
    """`task` a line a field, but for sizes; of a preset what differs from it alone."""
    document = task.model_dump(mode="json", exclude={"image_size", "volume"}, exclude_none=True)
    if task.name in PRESETS and task.classes == filled({"name": task.name})["classes"]:
        del document["classes"]
    return "".join(f"  {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n" for name, value in document.items())


def on_this_machine(silo_config: Path | str) -> str:
    """`dispatch` of a hospital whose work is a process here."""
    return f"{{kind: process, silo_config: {json.dumps(str(silo_config))}}}"


def in_a_cluster(context: str) -> str:
    """`dispatch` of a hospital whose work is Jobs; a blank context is the cluster that the hub runs in."""
    return f"{{kind: kubernetes, context: {json.dumps(context)}}}" if context else "{kind: kubernetes}"
