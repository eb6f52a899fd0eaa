"""`fedhelp teacher`: a teacher made of a network and a weights file that the user has, and tried on public images. Called by main.py."""

from __future__ import annotations

import json
from pathlib import Path

from fedhelp_cli.check import print_trial
from fedhelp_cli.commands import quoted
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig, TeacherConfig
from fedhelp_core.errors import ConfigError


def make_and_try(
    network: str, *, weights: Path, classes: str, side: int, channels: int, arguments: str, mean: str, std: str, out: Path, images: Path | None,
) -> None:
    """Write the teacher into `out`, try it on `images`, and print what federation.yaml says of it.

    Raises:
        ConfigError, NotFound, WeightsError, TeacherError, DataError: what cannot be used.
    """
    from fedhelp_core.softlabels.network_teacher import Wanted, make_teacher  # PyTorch takes seconds to import
    from fedhelp_core.softlabels.trial import tried_alone

    names = tuple(name.strip() for name in classes.split(",")) if not classes.isdecimal() else ()
    library, _, name = network.partition(":")
    count = len(names) or int(classes)
    make_teacher(
        Wanted(library=library, network=name, weights=weights, classes=count, side=side, channels=channels, arguments=_mapping(arguments),
               mean=_numbers("--mean", mean), std=_numbers("--std", std)), out)
    teacher = TeacherConfig(name="teacher", uri=str(out.absolute()), classes=count, image_size=side, prompts=names)
    print(f"{out}: a teacher of {count} classes, an MLflow model that needs PyTorch alone. In federation.yaml:")
    print(f"""
public_set:
  images: {quoted(images) if images is not None else 'FOLDER'}
  teachers:
    - name: teacher
      uri: {out.absolute()}
      classes: {count}
      image_size: {side}""" + (f"\n      prompts: {json.dumps(list(names))}" if names else ""))
    print(f"\nBehind the Open Inference Protocol: mlserver start {quoted(out)} (docs/teachers.md)")
    if images is None:
        print("Not tried yet: name a folder of public images with --images.")
        return
    print_trial(tried_alone(teacher, PublicSetConfig(images=images, teachers=(teacher,)), TaskConfig(image_size=side)))


def _mapping(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as e:
        raise ConfigError(f"--arguments: a JSON object expected, e.g. '{{\"growth_rate\": 16}}', got {text!r}") from e
    if not isinstance(found, dict):
        raise ConfigError(f"--arguments: a JSON object expected, got {text!r}")
    return found


def _numbers(option: str, text: str) -> tuple[float, ...] | None:
    try:
        return tuple(float(one) for one in text.split(",")) if text else None
    except ValueError as e:
        raise ConfigError(f"{option}: numbers expected, comma-separated, such as 0.485,0.456,0.406, got {text!r}") from e
