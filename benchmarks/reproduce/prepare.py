"""A real set made ready: hospitals' lists, the teacher's images, and a federation that `run_study` takes. Nothing of the set is changed.

    OUT/<set>/hospitals/   what `fedhelp data ingest` writes: silos/*.yaml, datalists/*.json, report.html
    OUT/<set>/outside/     the same of hospitals that train nothing
    OUT/<set>/public/      copies of the images that the teacher is asked about
    OUT/<set>/teachers/    MLflow models, and field.json: what the field's learnt from
    OUT/<set>/store/       the teachers' answers

Called by __main__.py. Every step is done once.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reproduce.sets import RealSet, Source
from examples.teachers.efficientnet.save import Labelled
from fedhelp_core.config.federation import Federation, parse_federation
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.datalist import Manifest
from fedhelp_core.data.ingest import all_items, ingest, write_silos
from fedhelp_core.data.public_layouts import Hospital, hospitals_of
from fedhelp_core.data.sharing import share_of_name, subject_of, taken
from fedhelp_core.disk import atomic_write, disk_errors
from fedhelp_core.errors import DataError
from fedhelp_core.report.data_page import write_report

Say = Callable[[str], None]
NATURAL, FIELD = "natural", "field"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A set on disk."""

    study: RealSet
    folder: Path
    silos: Mapping[str, Path]
    """Hospital -> its silo.yaml."""
    outside: Mapping[str, Path]
    """Those that train nothing."""
    teachers: Mapping[str, Mapping[str, Any]]
    """Teacher -> the federation's `public_set`; 'none' where nobody is asked."""
    patients: Mapping[str, tuple[str, ...]]
    """Hospital -> the patient of each test image, in the order of its list."""

    def federation(self, teacher: str = FIELD, **changes: object) -> Federation:
        """The federation that asks `teacher`."""
        study = self.study
        asked = self.teachers.get(teacher)
        return parse_federation({
            "version": 1, "name": f"real-{study.name}",
            "task": {"name": study.task, "image_size": study.image_size, **({"volume": dict(study.volume)} if study.volume else {})},
            "algorithm": {"method": "fedhelp" if asked else "fedhelp-no-api", **study.algorithm},
            "runtime": {"seed": 1, "threads": 1, "device": "auto"},
            **({"public_set": dict(asked)} if asked else {}),
            "store": {"url": str(self.folder / "store")},
            "silos": [{"name": name, "dispatch": {"kind": "process", "silo_config": str(path)}} for name, path in self.silos.items()],
        }, source=f"the study {study.name}").override(**changes)


def prepare(study: RealSet, data: Path, out: Path, *, natural: Path | None = None, full: bool = False, say: Say = print) -> Prepared:
    """Make what is missing of `study` below `out`.

    Args:
        study: Which.
        data: Folder of the real sets.
        out: Where everything goes.
        natural: Folder of CIFAR-10's binary files, for the teacher of natural images; None: that row is left out.
        full: All training images.
        say: Told what is being done.

    Raises:
        DataError: a set is not there, or cannot be used.
    """
    folder = out / study.name
    hospitals = _hospitals(study, study.full_hospitals if full else study.hospitals, data)
    taking_part = {name: hospitals[theirs] for theirs, name in study.names.items()}
    if study.share < 1 and not full:
        taking_part = {name: replace(one, manifest=_smaller(one.manifest, study.share)) for name, one in taking_part.items()}
    outside = {name: next(iter(_hospitals(study, source, data).values())) for name, source in study.outside.items()}
    silos = _written(folder / "hospitals", taking_part, study.hospitals, study, say)
    guests = _written(folder / "outside", outside, Source(layout="", folder=""), study, say) if outside else {}
    teachers = _teachers(study, hospitals, folder, natural, say)
    everybody = {**taking_part, **outside}
    return Prepared(
        study=study, folder=folder, silos=silos, outside=guests, teachers=teachers,
        patients={name: tuple(subject_of(item, one.manifest.subjects) for item in one.manifest.test) for name, one in everybody.items()})


def _hospitals(study: RealSet, source: Source, data: Path) -> dict[str, Hospital]:
    if not (data / source.folder).is_dir():
        raise DataError(f"{data / source.folder}: no such folder; DATA is where the real sets lie (docs/reproduce/real-images.md)")
    return hospitals_of(source.layout, (data / source.folder).resolve(), _task(study), source.options_in(data.resolve()))


def _task(study: RealSet) -> TaskConfig:
    return TaskConfig.model_validate({"name": study.task, "image_size": study.image_size, **({"volume": dict(study.volume)} if study.volume else {})})


def _smaller(manifest: Manifest, share: float) -> Manifest:
    """A share of the images that are for training and validation, patient by patient and class by class. The test stays."""
    def some(items: tuple[Any, ...]) -> tuple[Any, ...]:
        counts = Counter(item.label for item in items)
        chosen = taken(items, manifest.subjects, {label: max(1, round(share * count)) for label, count in counts.items()})
        return tuple(item for item in items if subject_of(item, manifest.subjects) in chosen)

    return replace(manifest, training=some(manifest.training), validation=some(manifest.validation))


def _written(folder: Path, hospitals: Mapping[str, Hospital], source: Source, study: RealSet, say: Say) -> dict[str, Path]:
    paths = {name: folder / "silos" / f"{name}.yaml" for name in hospitals}
    if not all(path.exists() for path in paths.values()):
        say(f"{study.name}: {sum(len(all_items(one.manifest)) for one in hospitals.values()):,} images of {', '.join(hospitals)} are opened")
        ingested = ingest(hospitals, _task(study), drop_leaked=source.drop_leaked)
        write_report(folder, ingested.report)
        write_silos(folder, ingested, _task(study))
    return paths


@dataclass(frozen=True, kw_only=True)
class TeachersImages:
    """The images of the hospital that takes no part: half of its patients' are labelled for the teacher, it is asked about the others'."""

    labelled: Labelled
    asked: Labelled


def teachers_images(study: RealSet, data: Path, *, full: bool = False) -> TeachersImages:
    """Of a set that has such a hospital."""
    return _divided(study, _hospitals(study, study.full_hospitals if full else study.hospitals, data)[study.teacher_hospital].manifest)


def _divided(study: RealSet, whole: Manifest) -> TeachersImages:
    items = all_items(whole)
    learnt = [share_of_name(f"teacher/{subject_of(item, whole.subjects)}") < 0.5 for item in items]

    def labelled(chosen: list[Any]) -> Labelled:
        return Labelled(
            images=tuple(item.image for item in chosen), labels_N=np.array([item.label for item in chosen]),
            patients=tuple(subject_of(item, whole.subjects) for item in chosen), classes=_task(study).classes)

    return TeachersImages(
        labelled=labelled([item for item, known in zip(items, learnt, strict=True) if known]),
        asked=labelled([item for item, known in zip(items, learnt, strict=True) if not known]))


def _teachers(study: RealSet, hospitals: Mapping[str, Hospital], folder: Path, natural: Path | None, say: Say) -> dict[str, dict[str, Any]]:
    """The federation's `public_set` by teacher."""
    from benchmarks.reproduce.teacher import hospital_teacher, natural_teacher

    found: dict[str, dict[str, Any]] = {}
    if natural is not None and study.teacher_hospital:
        teacher = natural_teacher(folder / "teachers" / NATURAL)
        found[NATURAL] = {"images": str(natural), "layout": "cifar10", "teachers": [teacher.model_dump(mode="json")]}
    if study.teacher_hospital:
        images = _divided(study, hospitals[study.teacher_hospital].manifest)
        public = folder / "public"
        if not public.exists():
            with disk_errors(public), atomic_write(public) as scratch:
                scratch.mkdir()
                for number, image in enumerate(images.asked.images):
                    shutil.copyfile(image, scratch / f"{number:05}{image.suffix}")
        where = folder / "teachers" / FIELD
        if not (where / "MLmodel").exists():
            say(f"{study.name}: the field's teacher learns from {len(images.labelled.images):,} images of {study.teacher_hospital}")
            shutil.rmtree(where, ignore_errors=True)
            teacher, fit = hospital_teacher(where, images.labelled)
            (folder / "teachers" / "field.json").write_text(json.dumps({
                "labelled": len(images.labelled.images), "asked": len(images.asked.images), "cross_validated_auroc": round(fit.auroc, 4),
                "teacher": teacher.model_dump(mode="json")}))
        config = json.loads((folder / "teachers" / "field.json").read_text())["teacher"]
        found[FIELD] = {"images": str(public), "layout": "folder", "teachers": [config]}
    return found
