"""`fedhelp model list | fetch | adopt | rollback | export`: a hospital's models, in words. Called by main.py.

fedhelp_core/deployment does the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedhelp_cli.commands import quoted
from fedhelp_core.config.silo import SiloConfig, load_silo
from fedhelp_core.deployment.adopted import Adopted, ModelFolder, model_meant, models_in
from fedhelp_core.deployment.decisions import DecisionLedger
from fedhelp_core.disk import disk_errors
from fedhelp_core.errors import ConfigError, FedHelpError, RetryableError
from fedhelp_core.printable import printable
from fedhelp_core.protocol.model_record import ModelRecord, model_names, read_chain
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store

if TYPE_CHECKING:
    from fedhelp_core.deployment.adoption import Comparison
    from fedhelp_core.deployment.audit import FindingAudit

_DECISIONS_SHOWN = 10


def list_models(silo: Path, *, store: str | None, endpoint_url: str | None, name: str | None) -> None:
    """What is in use, was before, was fetched and was decided; and, where the store can be reached, what the hub has promoted."""
    config = load_silo(silo)
    console = Console(width=None if Console().is_terminal else 160)
    local = [name] if name else models_in(config.state)
    for one in local:
        console.print(_local_table(ModelFolder(config.state, one)))
    if not local:
        print(f"silo {config.name}: no model was fetched yet: fedhelp model fetch --silo {quoted(silo)}")
    for line in _decisions(config, name):
        print(printable(line))
    if store or config.adoption.store:
        try:
            console.print(_store_table(_store_of(config, store, endpoint_url), name or config.adoption.model))
        except RetryableError as e:
            print(printable(f"the hub's record is not to be had now ({e}); everything here goes on without it"))


def fetch_model(silo: Path, *, store: str | None, endpoint_url: str | None, name: str | None, version: str | None) -> str:
    """Fetch the champion, or `version`; what that was, for people."""
    from fedhelp_core.deployment.adoption import fetch

    config = load_silo(silo)
    place = _store_of(config, store, endpoint_url)
    wanted = name or config.adoption.model
    asked = model_meant(config.state, asked=wanted, configured=None, known=None if wanted else model_names(place))
    fetched, chain = fetch(place, ModelFolder(config.state, asked), version)
    record = fetched.record
    return "\n".join([
        f"{asked}: version {record.version} fetched and verified (record {record.number} of {len(chain.records)}, {record.kind}, run {record.run})",
        f"weights sha256 {record.weights.sha256}",
        f"adopt it with: fedhelp model adopt --silo {quoted(silo)}{_named(name)}"])


def adopt_model(
    silo: Path, *, name: str | None, version: str | None, force: str | None, device: str, store: str | None, endpoint_url: str | None, dry_run: bool,
) -> str:
    """Adopt what was fetched, by the hospital's rule; what that came to, for people."""
    from fedhelp_core.deployment.adoption import adopt, announce, chosen_fetched, compared
    from fedhelp_core.silo.work import device_for

    config = load_silo(silo)
    folder = ModelFolder(config.state, model_meant(config.state, asked=name, configured=config.adoption.model))
    fetched = chosen_fetched(folder, version)
    if dry_run:
        found = compared(config, folder, fetched, device_for(device))
        return "\n".join([*_scores(found, config), f"{'would be adopted' if found.passes else 'would not be adopted'}: {found.reason}"])
    found = adopt(config, folder, fetched, device_for(device), force=force)
    if found.is_in_use:
        lines = [f"{found.new.title} is in use already; nothing was changed"]
    else:
        lines = [*_scores(found, config), *found.new.notes, f"in use now: {found.new.title}; {found.reason}"]
    if config.adoption.announce:
        try:
            announce(config, _store_of(config, store, endpoint_url), found.new)
            lines.append(f"the store was told: adopted version {found.new.version}")
        except FedHelpError as e:
            lines.append(f"the store could not be told ({e}); the model is in use all the same")
    if found.in_use is not None and not found.is_in_use:
        lines.append(f"go back with: fedhelp model rollback --silo {quoted(silo)}{_named(name)}")
    return "\n".join(lines)


def roll_back_model(silo: Path, *, name: str | None, reason: str) -> str:
    """Go back to the model before; which that is, for people."""
    from fedhelp_core.deployment.adoption import roll_back

    config = load_silo(silo)
    back, from_ = roll_back(ModelFolder(config.state, model_meant(config.state, asked=name, configured=config.adoption.model)), reason)
    return f"in use again: {back.title}, in place of version {from_.version}; going back once more takes that again"


def export_model(silo: Path, *, name: str | None, out: Path, form: str) -> str:
    """Write the model in use to `out`; how to use that, for people."""
    from fedhelp_core.deployment.export import export_program, export_weights

    config = load_silo(silo)
    adopted = ModelFolder(config.state, model_meant(config.state, asked=name, configured=config.adoption.model)).in_use()
    if out.exists():
        raise ConfigError(f"--out {out}: is there already, and is not overwritten; give a new name")
    with disk_errors(out):
        return export_program(adopted, out) if form == "program" else export_weights(adopted, out)


def audit_model(silo: Path, outcomes: Path, *, name: str | None) -> None:
    """How right the answers were, month by month, beside the score at adoption."""
    from fedhelp_core.deployment.answer_record import AnswerRecord
    from fedhelp_core.deployment.audit import audited, outcomes_in

    config = load_silo(silo)
    folder = ModelFolder(config.state, model_meant(config.state, asked=name, configured=config.adoption.model))
    contract = folder.in_use().contract
    record = AnswerRecord(config.state)
    lines, damaged = record.read()
    found = audited(lines, outcomes_in(outcomes, contract.task), folder.name, contract.task)
    table = Table(title=Text(f"{folder.name} in this hospital, by month"))
    for heading in ("month", "version", "images", "do not decide", "right of the decided", "balanced accuracy", "95%"):
        table.add_column(heading, overflow="fold")
    for month in found.months:
        least, most = month.interval
        table.add_row(
            month.month, ", ".join(month.versions), f"{month.images:,}", f"{month.undecided:,}",
            f"{month.right:,} of {month.images - month.undecided:,}", f"{month.score:.3f}",
            f"{least:.3f} to {most:.3f}" if least == least else "")
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    if found.findings:
        console.print(_findings_table(found.findings))
    score = f"{contract.headline} {contract.scores[contract.headline]:.3f}"
    print(f"at its adoption {contract.title} had {score} on {contract.test_images:,} test images")
    print(f"not judged: {found.open:,} images whose outcome is not known, {found.unknown:,} outcomes of images that nobody asked about")
    if damaged:
        print(f"{record.folder}: {damaged:,} lines cannot be read, and were left out")


def _findings_table(findings: Sequence[FindingAudit]) -> Table:
    table = Table(title=Text("of all months, by finding"))
    for heading in ("finding", "found where it is there", "not found where it is not"):
        table.add_column(heading, overflow="fold")
    for one in findings:
        table.add_row(Text(printable(one.finding)), f"{one.found:,} of {one.there:,}", f"{one.spared:,} of {one.absent:,}")
    return table


def _store_of(config: SiloConfig, url: str | None, endpoint_url: str | None) -> Store:
    chosen = url or config.adoption.store
    if not chosen:
        raise ConfigError(f"silo {config.name}: no store is named; give --store, or adoption.store in silo.yaml: a folder, or s3://bucket/prefix")
    return open_store(chosen, endpoint_url=endpoint_url or config.adoption.endpoint_url)


def _named(name: str | None) -> str:
    return f" --name {quoted(name)}" if name else ""


def _local_table(folder: ModelFolder) -> Table:
    from fedhelp_core.deployment.adoption import read_fetched

    table = Table(title=Text(f"{folder.name} in this hospital"))
    for heading in ("", "version", "model", "score", "test images", "run"):
        table.add_column(heading, overflow="fold")
    for what, one in (("in use", folder.adopted()), ("before", folder.before())):
        if one is not None:
            table.add_row(what, *_row(one))
    for path in reversed(folder.fetched()):
        try:
            record = read_fetched(path).record
        except FedHelpError as e:
            table.add_row("fetched", "", Text(printable(e)), "", "", "")
            continue
        table.add_row("fetched", record.version, "adopted" if _is_adopted(folder, record) else "not adopted", "", "", record.run)
    return table


def _is_adopted(folder: ModelFolder, record: ModelRecord) -> bool:
    return any(one is not None and one.contract.number == record.number for one in (folder.adopted(), folder.before()))


def _row(adopted: Adopted) -> tuple[str, ...]:
    contract = adopted.contract
    return (contract.version, "large, this hospital's own" if contract.model == "large" else "the shared one",
            f"{contract.headline} {contract.scores[contract.headline]:.3f}", f"{contract.test_images:,}", contract.run)


def _store_table(store: Store, name: str | None) -> Table:
    table = Table(title=Text(f"promoted by the hub, in {store.url}"))
    for heading in ("model", "record", "version", "what", "when", "by", "reason"):
        table.add_column(heading, overflow="fold")
    for one in [name] if name else model_names(store):
        for record in read_chain(store, one).records[-_DECISIONS_SHOWN:]:
            table.add_row(*(Text(printable(cell)) for cell in (
                record.name, str(record.number), record.version, record.kind, record.time, record.decided_by, record.reason)))
    return table


def _decisions(config: SiloConfig, name: str | None) -> Iterator[str]:
    ledger = DecisionLedger(config.state / "adoptions.jsonl")
    found = [one for one in ledger.decisions() if name in (None, one.model)]
    if found:
        yield f"decisions ({ledger.path}):"
    for one in found[-_DECISIONS_SHOWN:]:
        yield f"  {one.time} {one.by}: {one.model} version {one.version} {one.action}{f': {one.reason}' if one.reason else ''}"


def _scores(found: Comparison, config: SiloConfig) -> Iterator[str]:
    yield f"on {found.new.test_images:,} test images of this hospital:"
    for metric, value in found.new.scores.items():
        yield f"  {metric}: {value:.3f}" + (f", in use {found.old[metric]:.3f}" if metric in found.old else "")
    band = found.joined.in_band(config.adoption.undecided_margin)
    if band is not None:
        undecided, decided, right = band
        yield f"  do not decide: {undecided:,} of {undecided + decided:,}; of the {decided:,} decided ones {right:,} are right"
