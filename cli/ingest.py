"""`fedhelp data ingest`: progress, the table, and what to type next. Called by main.py; fedhelp_core/data/ingest.py does the work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedhelp_cli.counting import Counting
from fedhelp_cli.init import federation_of_ingested, next_steps
from fedhelp_core.config.task import TaskConfig, task_asked_for
from fedhelp_core.data.findings import DataReport, called, remarks, rows_of
from fedhelp_core.data.ingest import Ingested, ingest, write_silos
from fedhelp_core.data.leakage import Side
from fedhelp_core.data.medmnist import MedMnist
from fedhelp_core.data.problems import told
from fedhelp_core.data.public_layouts import Hospital, Options, hospitals_of, layout_called
from fedhelp_core.errors import ConfigError, DataError
from fedhelp_core.registry.tasks import PRESETS
from fedhelp_core.report.data_page import write_report
from fedhelp_core.report.picture_page import Looked, write_picture_pages

_OPTIONS = {"data.images": "FOLDER or --images", "data.masks": "--masks", "data.split_csv": "--split-csv", "data.prefix": "--prefixes"}
_SIDE = 128    # pixels; says nothing about what is written, for images are reported as they lie on disk


def ingest_and_print(
    layout: str, folder: Path, options: Options, *, task: str | None, out: Path | None, drop_leaked: Side | None, keep_leaked: bool,
    drop_unusable: bool, sample: int | None, dry_run: bool,
) -> None:
    """Look at the data set in `folder`, print what it holds, write datalists, report and pages of pictures below `out`.

    Raises:
        ConfigError: layout, task or an option.
        DataError: the data cannot be used as they are; the report says more.
    """
    entry = layout_called(layout)
    try:
        archive = entry.archive(folder.resolve(), options) if entry.archive is not None else None
        asked = _task_of(layout, task or entry.task, archive)
        config = asked.model_copy(update={"image_size": _SIDE})
        out = (out or Path("data") / config.name).resolve()
        options = replace(options, unpacked=out / "images")
        hospitals = hospitals_of(layout, folder.resolve(), config, options)
    except DataError as e:
        raise DataError([_in_words_of_this_command(problem) for problem in e.problems]) from e
    if dry_run:
        _print_plan(hospitals, config, out)
        return
    if archive is not None:
        archive.unpack(options.unpacked)
    console = Console(stderr=True)
    with Counting(console, "looking at images", "looked at") as looking:
        ingested = ingest(
            hospitals, config, drop_leaked=drop_leaked, keep_leaked=keep_leaked, drop_unusable=drop_unusable, sample=sample,
            progress=lambda silo, done, total: looking.progress(done, total, f"silo {silo}"))
    _print_report(ingested.report)
    write_report(out, ingested.report)
    looked = list(_looked(hospitals, ingested))
    write_picture_pages({one.silo: out / "pictures" / f"{one.silo}.html" for one in looked}, looked, config)
    console.print(f"report: {out / 'report.html'} and report.json; look at the pictures: {out / 'pictures'}/<silo>.html", highlight=False,
                  soft_wrap=True)
    if ingested.unseen:
        console.print(f"a sample: {ingested.unseen:,} images were not looked at", highlight=False)
    paths = write_silos(out, ingested, config)
    print(f"{out}: {len(paths)} silos, their silo.yaml files in {paths[0].parent}: {', '.join(ingested.manifests)}")
    training = {silo: path for (silo, manifest), path in zip(ingested.manifests.items(), paths, strict=True) if not manifest.test_only}
    if training:
        federation = federation_of_ingested(out, task=asked, silos=training)
        print(f"{federation}: a federation of them, with a comment a line")
        print(next_steps(federation))


def _looked(hospitals: Mapping[str, Hospital], ingested: Ingested) -> Iterator[Looked]:
    everything = list(remarks(ingested.report))
    for silo, one in hospitals.items():
        yield Looked(
            silo, [place.seen for place in ingested.report.places if place.silo == silo], sum(len(items) for _, items in one.manifest.splits()),
            one.origin, ingested.report.bits.get(silo), [remark for remark in everything if remark.startswith(f"silo {silo}: ")],
            [problem for problem in ingested.report.unusable if problem.startswith(f"silo {silo}: ")])


def _in_words_of_this_command(problem: str) -> str:
    """Loaders name the field of silo.yaml that a person should correct; here there is none yet."""
    return re.sub(
        r"correct (data\.\w+(?: or data\.\w+)*) in silo\.yaml",
        lambda found: "give the right " + " or ".join(_OPTIONS.get(field, "FOLDER") for field in found[1].split(" or ")), problem)


def _task_of(layout: str, named: str | None, archive: MedMnist | None) -> TaskConfig:
    """What is learnt: as --task or the layout names it, else as the archive does. An archive says its classes itself."""
    if named is None and archive is None:
        raise ConfigError(
            f"--task: what is learnt expected, for layout {layout} is of no task by itself: one of {', '.join(PRESETS)}, or the YAML file of a task"
            " (docs/tasks.md)")
    asked = None if named is None else task_asked_for(named)
    if archive is None:
        assert asked is not None
        return asked
    return TaskConfig.model_validate(archive.task if asked is None else {**asked.model_dump(), "classes": archive.classes})


def _print_plan(hospitals: Mapping[str, Hospital], task: TaskConfig, out: Path) -> None:
    table = Table(title=Text(f"{task.name}: what the lists say; no image was opened, nothing written"))
    for heading in ("silo", "training", "validation", "test", "would write"):
        table.add_column(heading, justify="right" if heading in ("training", "validation", "test") else "left", overflow="fold")
    for silo, one in hospitals.items():
        counts = [f"{len(items):,}" for _, items in one.manifest.splits()]
        table.add_row(Text(called(silo, one.origin)), *counts, Text(f"datalists/{silo}.json, silos/{silo}.yaml"))
    Console().print(table)
    print(f"would write them, report.html and report.json below {out}")
    for silo, one in hospitals.items():
        for problem in told(f"silo {silo}: {problem}" for problem in one.manifest.problems):
            print(problem)
    for note in dict.fromkeys(note for one in hospitals.values() for note in one.manifest.notes):
        print(note)


def _print_report(report: DataReport) -> None:
    classes = not report.task.per_pixel
    table = Table(title=Text(f"{report.task.name}: {len(report.places):,} images"))
    if classes:
        table.caption = Text(f"images of each {'finding' if report.task.form == 'labels' else 'class'}: {', '.join(report.task.classes)}")
    for heading in ("silo", "split", "images", "of each class" if classes else "foreground", "sizes", "intensities", "grid"):
        table.add_column(heading, justify="right" if heading == "images" else "left", overflow="fold")
    for row in rows_of(report, short=True):
        table.add_row(*(Text(value) for value in row))
    console = Console()
    console.print(table)
    for remark in remarks(report):
        console.print(Text(remark), soft_wrap=True)
    for what, sentences in (("left out as leaked", report.dropped), ("left out as unusable", () if report.refused else report.unusable)):
        if sentences:
            console.print(Text(f"{what}: {len(sentences)}, the first: {sentences[0]}"), soft_wrap=True)
