"""`fedhelp predict`: the model in use asked about images, with progress and the table of what it decided. Called by main.py.

fedhelp_core/deployment does the work. Nothing here needs the hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedhelp_cli.commands import quoted
from fedhelp_cli.counting import Counting
from fedhelp_core.config.silo import SiloConfig, load_silo
from fedhelp_core.data.problems import told
from fedhelp_core.deployment.adopted import Adopted, ModelFolder, model_meant
from fedhelp_core.deployment.images_in import Found, found_in
from fedhelp_core.errors import DataError, PartlyDone
from fedhelp_core.printable import printable

_NAMED = 20  # images that --dry-run lists


def predict_and_print(silo: Path, asked: Sequence[Path], *, out: Path, name: str | None, device: str, pictures: bool, dry_run: bool) -> None:
    """Answer about the images of `asked` with the model in use, and write the folder `out`.

    Raises:
        NotFound: no model is in use.
        DataError: no image could be used.
        PartlyDone: some could not be; the others were answered.
        ConfigError: `out` holds something else.
    """
    config = load_silo(silo)
    adopted = ModelFolder(config.state, model_meant(config.state, asked=name, configured=config.adoption.model)).in_use()
    found = found_in(asked, adopted.contract.task)
    if dry_run:
        _print_plan(adopted, found, out)
        return
    if not found.sources:
        raise DataError(told(found.problems))
    _answer(config, adopted, found, asked=asked, out=out, device=device, pictures=pictures)


def _print_plan(adopted: Adopted, found: Found, out: Path) -> None:
    print(f"{adopted.contract.title} would answer about {len(found.sources):,} images and write {out}:")
    for source in found.sources[:_NAMED]:
        print(printable(source.path))
    if len(found.sources) > _NAMED:
        print(f"and {len(found.sources) - _NAMED:,} more")
    for line in (*found.notes, *found.problems):
        print(printable(line))


def _answer(config: SiloConfig, adopted: Adopted, found: Found, *, asked: Sequence[Path], out: Path, device: str, pictures: bool) -> None:
    from fedhelp_core.algorithm.randomness import fix_arithmetic
    from fedhelp_core.deployment.answer_record import AnswerRecord
    from fedhelp_core.deployment.results import write_results
    from fedhelp_core.deployment.scorer import scorer_in
    from fedhelp_core.silo.work import device_for

    fix_arithmetic(adopted.contract.threads)
    scorer = scorer_in(adopted.contract, adopted.weights, config.adoption, device_for(device))
    with Counting(Console(stderr=True), "answering", "answered") as bar:
        summary = write_results(
            out, scorer, found, asked=asked, card=adopted.card, pictures=pictures, record=AnswerRecord(config.state), progress=bar.progress)
    for note in summary.notes:
        print(printable(note))
    decided = ", ".join(f"{decision} {count:,}" for decision, count in sorted(summary.decisions.items()))
    undecided = f"; do not decide {summary.undecided:,}" if summary.undecided else ""
    print(f"{adopted.contract.title}: {summary.answered:,} images answered: {decided or 'none decided'}{undecided}")
    shown = ("results.csv", "results.json", *(["results.html"] if pictures else []))
    print(f"see {', '.join(quoted(out / file) for file in shown)}")
    if summary.problems:
        raise PartlyDone("\n".join(told(summary.problems)))
