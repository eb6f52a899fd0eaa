"""What a model says of a hospital's images, as files: CSV, JSON, masks in the images' own geometry, and a page of pictures.

Called by `fedhelp predict`. The folder appears in one step when all is written; the same question again replaces it, and another's is never touched.
Memory holds one batch of pictures, or one volume. Everything names patients' files: it stays in the hospital.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.data.grid import spacing_of
from fedhelp_core.data.problems import told
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.deployment.answer_record import Answered, AnswerRecord, answered_now
from fedhelp_core.deployment.images_in import Found, PictureGrid, Prepared, Reader, Source
from fedhelp_core.deployment.page import Shown, render
from fedhelp_core.deployment.scorer import Answer, ClassAnswer, FindingsAnswer, MaskAnswer, Scorer
from fedhelp_core.disk import Place, disk_errors, scratch_file, sweep
from fedhelp_core.errors import AccessDenied, ConfigError, DataError, FedHelpError, NotFound, PermanentError, StorageFull
from fedhelp_core.protocol.documents import dump

UNDECIDED = "do not decide"
_QUESTION = ".question.json"  # what the results in a folder answer
_ON_PAGE = 200  # images, twice each: a page of some ten megabytes
_DIGITS = 6  # in the CSV, for people; the JSON has all
_FORMULA = ("=", "+", "-", "@")  # what spreadsheets would calculate
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")
_STEM = 60  # characters of a file's own name in the name of its mask
RESULTS = Place({
    StorageFull: "no space left for the results; free some, then run again (nothing was written)",
    AccessDenied: "results cannot be written here ({why}); give another --out",
    NotFound: "results cannot be written here ({why}); give another --out",
    PermanentError: "results cannot be written here ({why}); give another --out",
}, otherwise=PermanentError)

Progress = Callable[[int, int], None]
"""(images done, images in all)."""


@dataclass(frozen=True)
class Summary:
    """What was answered."""

    answered: int
    undecided: int
    problems: tuple[str, ...]
    """Of files that could not be used."""
    notes: tuple[str, ...]
    decisions: Mapping[str, int]
    """How often each class was decided, or a mask was found; undecided ones apart."""


def write_results(
    out: Path, scorer: Scorer, found: Found, *, asked: Sequence[Path], card: Path | None = None, pictures: bool = True,
    record: AnswerRecord | None = None, progress: Progress = lambda _done, _all: None,
) -> Summary:
    """Answer about `found`, which the paths `asked` stand for, and write the folder `out`, with the model's `card` beside the answers.

    The answers are also in `record`; where that cannot be written, a note says so.

    Raises:
        ConfigError: `out` holds something else, or lies among what was asked about.
        DataError: no image at all could be used; nothing was written.
        StorageFull, AccessDenied: it cannot be written; nothing was.
    """
    question, lines = question_of(scorer, asked, pictures=pictures), list[Answered]()
    require_place(out, asked, question)
    with _replaced(out) as folder, _Writer(folder, scorer, pictures=pictures) as writer:
        for done, (prepared, answer) in enumerate(answered(scorer, found.sources), start=1):
            writer.add(prepared, answer)
            if answer is not None:
                lines += answered_now("predict", scorer, [prepared], [answer])
            progress(done, len(found.sources))
        summary = writer.finish(found, question)
        if not summary.answered:
            raise DataError(told(summary.problems))
        if card is not None and card.exists():
            shutil.copyfile(card, folder / "model-card.md")
    if record is not None:
        try:
            record.append(lines)
        except (FedHelpError, OSError) as e:
            return replace(summary, notes=(*summary.notes, f"the answers are not in this hospital's record ({e})"))
    return summary


def answered(scorer: Scorer, sources: Sequence[Source]) -> Iterator[tuple[Prepared, Answer | None]]:
    """Each of `sources`, prepared, and what the model says of it; None where it cannot be used."""
    reader = Reader(scorer.contract.task, scorer.contract.pixel_bits)
    waiting: list[Prepared] = []
    for number, prepared in enumerate(reader.read(sources), start=1):
        waiting.append(prepared)
        if len(waiting) == scorer.batch or number == len(sources):
            usable = [one.image_CS for one in waiting if one.image_CS is not None]
            answers = iter(scorer.answers(np.stack(usable)) if usable else ())
            for one in waiting:
                yield one, None if one.image_CS is None else next(answers)
            waiting = []


def question_of(scorer: Scorer, asked: Sequence[Path], *, pictures: bool) -> str:
    """sha256 (hex) of what the answers depend on beside the files' content: who asks the same again may replace the answers."""
    band = [scorer.band.undecided_margin, scorer.band.undecided_dice]
    facts = [hashlib.sha256(dump(scorer.contract)).hexdigest(), sorted(str(path.resolve()) for path in asked), band, pictures]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def require_place(out: Path, asked: Sequence[Path], question: str) -> None:
    """Nothing where `out` is free for the answers to `question`.

    Raises:
        ConfigError: it holds something else, or lies among what was asked about.
    """
    place = out.resolve()
    for path in asked:
        inside = path.resolve()
        if inside == place or (path.is_dir() and place.is_relative_to(inside)) or inside.is_relative_to(place):
            raise ConfigError(f"--out {out}: lies where the images are ({path}), so that results would be among them; give a folder elsewhere")
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; give the name of a new folder")
    with disk_errors(out, RESULTS):
        held = sorted(path.name for path in out.iterdir())
    if held and _question_in(out) != question:
        what = "the results of another question" if _question_in(out) else f"other files ({held[0]})"
        raise ConfigError(f"--out {out}: holds {what}, which are not overwritten; give a new folder, or remove this one")


def _question_in(out: Path) -> str | None:
    """The question whose results lie in `out`."""
    try:
        found = json.loads((out / _QUESTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(found.get("sha256")) if isinstance(found, dict) else None


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of `out` when the block ends well; else nothing has changed."""
    with disk_errors(out, RESULTS):
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent)
        with scratch_file(out.parent) as folder, scratch_file(out.parent) as old:
            folder.mkdir()
            yield folder
            if out.exists():
                os.replace(out, old)
            os.replace(folder, out)


class _Writer:
    """Writes answers as they come."""

    def __init__(self, folder: Path, scorer: Scorer, *, pictures: bool) -> None:
        self._folder = folder
        self._scorer = scorer
        self._classes = scorer.contract.task.classes
        self._table = (folder / "results.csv").open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._table)
        self._csv.writerow(self._columns())
        self._json = (folder / "results.json").open("w", encoding="utf-8")
        self._json.write(json.dumps({"model": model_facts(scorer), "answers": []}, indent=1)[:-len("[]\n}")] + "[")
        self._pictures = _Pictures(scorer) if pictures else None
        self._count = self._answered = self._undecided = 0
        self._decisions: dict[str, int] = {}
        self._problems: list[str] = []
        self._notes: list[str] = []

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._json, self._table):
            with suppress(OSError):  # of a full disk: `finish` has told it, or another error has
                file.close()

    def add(self, prepared: Prepared, answer: Answer | None) -> None:
        """One image's row, and its files."""
        self._count += 1
        row: dict[str, Any] = {"file": prepared.source.called, "sha256": prepared.sha256}
        if answer is None:
            self._problems.append(prepared.problem)
            row["problem"] = prepared.problem
        else:
            self._answered += 1
            self._undecided += answer.undecided
            row |= self._mask_row(prepared, answer) if isinstance(answer, MaskAnswer) else self._image_row(answer)
            kept = counted_decision(self._scorer, answer)
            if kept != UNDECIDED:
                self._decisions[kept] = self._decisions.get(kept, 0) + 1
            if self._pictures is not None:
                self._pictures.add(prepared, answer, row)
        self._csv.writerow(self._cells(row))
        self._json.write(("," if self._count > 1 else "") + "\n  " + json.dumps(row, ensure_ascii=False))

    def finish(self, found: Found, question: str) -> Summary:
        """The end of the JSON, and the page."""
        self._json.write("\n ]\n}\n")
        self._json.close()
        self._table.close()
        problems, notes = (*found.problems, *self._problems), (*found.notes, *self._notes)
        (self._folder / _QUESTION).write_text(json.dumps({"sha256": question}), encoding="utf-8")
        if self._pictures is not None:
            page = render(self._scorer, self._pictures.shown, answered=self._answered, undecided=self._undecided, problems=problems, notes=notes)
            (self._folder / "results.html").write_text(page, encoding="utf-8")
        return Summary(self._answered, self._undecided, problems, notes, self._decisions)

    def _image_row(self, answer: ClassAnswer | FindingsAnswer) -> dict[str, Any]:
        if isinstance(answer, FindingsAnswer):
            return {"decision": decision_of(self._scorer, answer), "margin": answer.margin,
                    "found": [self._classes[number] for number in answer.found],
                    "probabilities": dict(zip(self._classes, answer.calibrated_K.tolist(), strict=True)),
                    "model_probabilities": dict(zip(self._classes, answer.probabilities_K.tolist(), strict=True))}
        name = self._scorer.class_name(answer)
        return {
            "decision": decision_of(self._scorer, answer), "class": name, "margin": answer.margin,
            "probabilities": dict(zip(self._classes, answer.calibrated_K.tolist(), strict=True)),
            "model_probabilities": dict(zip(self._classes, answer.probabilities_K.tolist(), strict=True))}

    def _mask_row(self, prepared: Prepared, answer: MaskAnswer) -> dict[str, Any]:
        assert prepared.grid is not None
        masks_K = answer.masks(prepared.grid.back)
        mask = masks_K.any(axis=0)
        name = f"{self._count:05d}-{_SAFE.sub('_', _stem(prepared.source.called))[:_STEM]}"
        (self._folder / "masks").mkdir(exist_ok=True)
        row = {
            "decision": decision_of(self._scorer, answer), "expected_dice": answer.expected_dice,
            "foreground": float(mask.mean())}
        if isinstance(prepared.grid, PictureGrid):
            for file, pixels in self._planes(name, answer, masks_K, full=255):
                Image.fromarray(pixels).save(self._folder / "masks" / f"{file}.png")
                row["mask"] = f"{row['mask']} masks/{file}.png" if "mask" in row else f"masks/{file}.png"
            return row
        volume = prepared.grid.volume
        millilitre = math.prod(spacing_of(volume.affine)) / 1000
        row["millilitres"] = float(mask.sum() * millilitre)
        if len(masks_K) > 1:
            row["millilitres_of_each"] = {
                called: float(one.sum() * millilitre) for called, one in zip(self._scorer.contract.task.answered, masks_K, strict=True)}
        for file, voxels in self._planes(name, answer, masks_K, full=1):
            write_nifti(self._folder / "masks" / f"{file}.nii.gz", voxels, volume.affine)
            row["mask"] = f"{row['mask']} masks/{file}.nii.gz" if "mask" in row else f"masks/{file}.nii.gz"
        if volume.slices and mask.any() and len(masks_K) == 1:
            from fedhelp_core.deployment.segmentation_object import write_segmentation  # highdicom, which nothing else needs

            try:
                write_segmentation(self._folder / "masks" / f"{name}.dcm", volume, masks_K[0], self._scorer.contract, prepared.sha256)
                row["segmentation"] = f"masks/{name}.dcm"
            except Unusable as e:
                self._notes.append(f"{prepared.source.called}: {e}")
        return row

    def _planes(self, name: str, answer: MaskAnswer, masks_K: NDArray[np.bool_], *, full: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Name and numbers of each file: of classes one with their numbers, of one foreground with `full`; of regions one each."""
        if not answer.regions:
            numbers = np.arange(1, len(masks_K) + 1, dtype=np.uint8) if len(masks_K) > 1 else np.array([full], np.uint8)
            yield name, np.asarray(np.tensordot(numbers, masks_K.astype(np.uint8), axes=1), np.uint8)
            return
        for called, mask in zip(self._scorer.contract.task.answered, masks_K, strict=True):
            yield f"{name}-{_SAFE.sub('_', called)[:_STEM]}", mask.astype(np.uint8) * np.uint8(full)

    def _columns(self) -> list[str]:
        of_answer = ["expected_dice", "foreground", "millilitres", "mask", "segmentation"] if self._scorer.contract.task.per_pixel else [
            *(["class"] if self._scorer.objective.form == "classes" else []), "margin", *(f"probability:{name}" for name in self._classes)]
        return ["file", "sha256", "decision", *of_answer, "model", "version", "problem"]

    def _cells(self, row: Mapping[str, Any]) -> list[Any]:
        contract = self._scorer.contract
        flat = {**row, **{f"probability:{name}": value for name, value in row.get("probabilities", {}).items()},
                "model": contract.name, "version": contract.version}
        flat["file"] = f"./{row['file']}" if row["file"].startswith(_FORMULA) else row["file"]
        return [round(value, _DIGITS) if isinstance(value := flat.get(column, ""), float) else value for column in self._columns()]


class _Pictures:
    """What the page shows: the first images, and all the undecided ones, as long as a page holds them."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._decided: list[Shown] = []
        self._undecided: list[Shown] = []
        self._heat: Any = None

    @property
    def shown(self) -> tuple[list[Shown], list[Shown]]:
        """Undecided ones, and others."""
        return self._undecided, self._decided[: max(0, _ON_PAGE - len(self._undecided))]

    def add(self, prepared: Prepared, answer: Answer, row: Mapping[str, Any]) -> None:
        """`prepared`, where there is room."""
        place = self._undecided if answer.undecided else self._decided
        if len(place) < _ON_PAGE:
            place.append(Shown.of(prepared, answer, row, heat=self._heat_of(prepared, answer)))

    def _heat_of(self, prepared: Prepared, answer: Answer) -> NDArray[np.float32] | None:
        if not isinstance(answer, ClassAnswer) or prepared.image_CS is None:
            return None
        if self._heat is None:
            from fedhelp_core.deployment.heat_maps import HeatMaps  # MONAI, which classification otherwise never waits for

            self._heat = HeatMaps(self._scorer)
        heat: NDArray[np.float32] = self._heat.heat(prepared.image_CS, answer.decided)
        return heat


def decision_of(scorer: Scorer, answer: Answer) -> str:
    """The class that was decided, the findings that are found, a mask's foreground, or that nothing is."""
    return UNDECIDED if answer.undecided else scorer.names_of(answer)


def counted_decision(scorer: Scorer, answer: Answer) -> str:
    """`decision_of` as figures count it, which have a label for each finding and not for each set of them: the likeliest that is found."""
    if isinstance(answer, FindingsAnswer) and not answer.undecided and answer.found:
        return scorer.contract.task.classes[answer.decided]
    return decision_of(scorer, answer)


def model_facts(scorer: Scorer) -> dict[str, Any]:
    """Which model answered, and how it decides."""
    contract, band = scorer.contract, scorer.band
    how = {"undecided_dice": band.undecided_dice} if contract.task.per_pixel else {"undecided_margin": band.undecided_margin}
    return {
        "name": contract.name, "version": contract.version, "silo": contract.silo, "model": contract.model, "network": str(contract.network),
        "weights_sha256": contract.weights_sha256, "global_sha256": contract.global_sha256, "run": contract.run,
        "task": contract.task.name, "classes": list(contract.task.classes), "preprocessing": contract.preprocessing,
        "operating_point": contract.operating_point.rule if contract.operating_point is not None else "probability 0.5", **how,
        "not a medical device": True}


def write_nifti(path: Path, mask_XYZ: NDArray[np.bool_ | np.uint8], affine: NDArray[np.float64]) -> None:
    """A mask's numbers with the affine (mm, RAS+) of its image."""
    import nibabel

    kind: Any = nibabel.Nifti1Image
    image = kind(mask_XYZ.astype(np.uint8), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _stem(called: str) -> str:
    name = called.replace(os.sep, "/").rsplit("/", 1)[-1]
    return re.sub(r"(\.nii\.gz|\.nii|\.dcm|\.png|\.jpe?g)$", "", name, flags=re.IGNORECASE) or "image"
