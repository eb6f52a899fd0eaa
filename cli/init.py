"""`fedhelp init`: a federation.yaml and silo.yaml files with comments, to be filled in. Called by main.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhelp_cli.commands import quoted
from fedhelp_core.config.federation import parse_federation
from fedhelp_core.config.files import mapping_in
from fedhelp_core.config.starter import in_a_cluster, on_this_machine, starter
from fedhelp_core.config.task import TaskConfig, task_asked_for, with_classes
from fedhelp_core.disk import disk_errors
from fedhelp_core.errors import ConfigError

_SILO = """\
# What hospital {silo} knows about itself. Never leaves it. Every field: docs/configuration.md.
# The datalist comes from the hospital's own list, and another silo.yaml for it, which takes this one's place:
#   fedhelp data ingest csv FOLDER --task {task} --silos {silo} --out OUT
version: 1
name: {silo}
data:
  layout: datalist                      # or a public set's own: fed-isic2019, chest-xray, pictures-and-masks, fed-ixi
  datalist: ../datalists/{silo}.json
  root: /data                           # folder that the paths in the datalist start from
state: {silo:<31}# large model, batch norms, caches, and the ledger of what left: back it up
"""


def init_and_print(folder: Path, *, name: str, task: str, classes: Sequence[str], silos: Sequence[str], store: str, clusters: bool) -> None:
    """Write what is not there yet below `folder`, and print what to type next.

    Raises:
        ConfigError: an option, or a file of other content is in the way.
    """
    learnt = with_classes(task_asked_for(task), classes)
    for silo in silos:
        if silos.count(silo) > 1:
            raise ConfigError(f"--silos: each name once expected, got {silo!r} twice")
    path = folder / "federation.yaml"
    dispatch = {silo: in_a_cluster(silo) if clusters else on_this_machine(f"silos/{silo}.yaml") for silo in silos}
    text = starter(name, learnt, dispatch, store=store, file=quoted(path))
    parse_federation(mapping_in(text, "--"), source="init")  # what is wrong with an option is said in the schema's words
    files = {path: text}
    if not clusters:
        files |= {folder / "silos" / f"{silo}.yaml": _SILO.format(silo=silo, task=task) for silo in silos}
    write_once(files)
    print(f"{path}: written, with a comment a line" + ("" if clusters else f"; {folder / 'silos'}: a silo.yaml for each hospital"))
    print(next_steps(path, clusters=clusters))


def next_steps(federation: Path, *, clusters: bool = False) -> str:
    """The three commands after a federation.yaml was written."""
    file = quoted(federation)
    last = f"fedhelp submit {file}  (on Kubeflow)" if clusters else f"fedhelp simulate {file} --methods local,fedavg,fedhelp-no-api --seeds 1,2,3"
    return "\n".join(["next:", f"  fedhelp check {file}", f"  fedhelp run {file}", f"  {last}"])


def write_once(files: Mapping[Path, str]) -> None:
    """All of `files`, or none where one is there with other content.

    Raises:
        ConfigError: such a file.
    """
    for path, text in files.items():
        with disk_errors(path):
            if path.exists() and path.read_bytes() != text.encode():
                raise ConfigError(f"{path}: is there with other content; delete it, or give another folder")
    for path, text in files.items():
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def federation_of_ingested(out: Path, *, task: TaskConfig, silos: Mapping[str, Path]) -> Path:
    """The federation.yaml beside what `fedhelp data ingest` wrote; one that is there is left as it is, since somebody may have changed it."""
    path = out / "federation.yaml"
    if not path.exists():
        dispatch = {silo: on_this_machine(config.relative_to(out)) for silo, config in silos.items()}
        plain = "".join(character if character.isalnum() and character.isascii() else "-" for character in out.name.lower())
        known = plain.strip("-")[:40].strip("-")
        write_once({path: starter(known or task.name, task, dispatch, file=quoted(path))})
    return path
