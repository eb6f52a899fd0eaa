"""`make reproduce DATA=...`: the compared methods on real images, each cell computed once and kept, and the pages made of them.

    python -m benchmarks.reproduce DATA [--out build/reproduce] [--only pneumonia,melanoma,brain] [--seeds 1,2,3,4,5] [--workers 2]

A command that was ended goes on where it was. Pages are written after every row, so that one can look while it runs.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.reproduce.pages import write_pages
from benchmarks.reproduce.prepare import Prepared, prepare
from benchmarks.reproduce.results import RowResult
from benchmarks.reproduce.rows import Row, equal_epochs, rows_of
from benchmarks.reproduce.sets import SETS
from fedhelp_core.errors import FedHelpError
from fedhelp_core.registry.methods import METHOD_PARTS
from fedhelp_core.study.study import load_simulated_silos, prefetched, run_study

NORMALISATIONS = ("silo", "shared")
_EVALUATE_EVERY = 3
_KEPT = 10.0  # seconds: a row that took less was there already, and says nothing about those to come


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute what is missing, and write the pages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the real sets, one a subfolder (docs/reproduce/real-images.md)")
    parser.add_argument("--out", type=Path, default=Path("build/reproduce"), help="cells, teachers and pages; default: build/reproduce")
    parser.add_argument("--only", default=",".join(SETS), help=f"sets, comma-separated; default: {','.join(SETS)}")
    parser.add_argument("--seeds", type=numbers, default="1,2,3,4,5", help="comma-separated; default: 1,2,3,4,5")
    parser.add_argument("--normalisations", default=",".join(NORMALISATIONS), help="default: silo,shared")
    parser.add_argument("--rows", type=_positive, default=None, help="only so many rows, the reference and the compared ones first; default: all")
    parser.add_argument("--workers", type=_positive, default=2, help="simulations side by side, a thread each; default: 2")
    parser.add_argument("--natural", type=Path, default=None, help="folder of CIFAR-10's binary files, for the row of natural images")
    parser.add_argument("--full", action="store_true", help="all training images; takes days without a GPU")
    given = parser.parse_args(arguments)
    for option, known in (("only", SETS), ("normalisations", NORMALISATIONS)):
        unknown = [name for name in getattr(given, option).split(",") if name not in known]
        if unknown:
            parser.error(f"--{option}: one of {', '.join(known)} expected, got {unknown[0]!r}")
    try:
        for name in given.only.split(","):
            study = prepare(SETS[name], given.data, given.out, natural=given.natural, full=given.full)
            _run(study, given)
    except FedHelpError as e:
        print(f"reproduce: {e}", file=sys.stderr)
        return e.exit_code
    return 0


def numbers(text: str) -> list[int]:
    """Whole numbers, comma-separated: an option's."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers, comma-separated, expected, got {text!r}") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 expected, got {text!r}")
    return int(text)


def _run(study: Prepared, given: argparse.Namespace) -> None:
    plain = study.federation()
    batches = batches_of_small(study)
    epochs = equal_epochs(batches, plain.algorithm.rounds) if study.study.teacher_hospital else 1
    rows = rows_of(study.study, natural="natural" in study.teachers, epochs=epochs)[: given.rows]
    found: list[RowResult] = []
    todo = [(row, normalisation) for normalisation in given.normalisations.split(",") for row in rows]
    spent: list[float] = []
    for number, (row, normalisation) in enumerate(todo):
        started = time.monotonic()
        found.append(computed(study, row, normalisation, given.seeds, given.workers))
        spent.append(time.monotonic() - started)
        new = [seconds for seconds in spent if seconds > _KEPT]
        left = f"about {sum(new) / len(new) * (len(todo) - number - 1) / 60:.0f} min left for this set" if new else "kept from before"
        print(f"{study.study.name}: row {number + 1} of {len(todo)}, {row.name}, {normalisation}: {found[-1].line()}; {left}", flush=True)
        write_pages(study, found, given.out / study.study.name)


def computed(study: Prepared, row: Row, normalisation: str, seeds: Sequence[int], workers: int) -> RowResult:
    """One row; cells that are there are not computed again."""
    parts = METHOD_PARTS[row.method]  # type: ignore[index]
    federation = study.federation(row.teacher, **row.settings, **{"algorithm.method": row.method})
    sha256 = prefetched(federation) if parts.soft_labels else None
    guests = dict(study.outside) if normalisation == "shared" and parts.averaged else {}
    result = run_study(
        federation, methods=[row.method], seeds=seeds, normalisations=[normalisation], out=study.folder, workers=workers,
        evaluate_every=_EVALUATE_EVERY, load=partial(load_simulated_silos, federation, distillation_sha256=sha256, guests=guests))
    return RowResult(row=row, normalisation=normalisation, seeds=tuple(seeds), cells=tuple(result.row(row.method, normalisation)))


def batches_of_small(study: Prepared) -> list[int]:
    """Private batches of an epoch, of each small silo."""
    federation = study.federation()
    silos = load_simulated_silos(federation)
    return [math.ceil(len(one.training.labels_N) / federation.algorithm.batch_size) for one in silos.values() if one.kind == "small"]


if __name__ == "__main__":
    sys.exit(main())
