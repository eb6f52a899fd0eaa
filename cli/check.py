"""`fedhelp check`: everything that check finds, without starting a run. Called by main.py.

Of silos on this machine every image is looked at, by the loader that training uses, and a page of pictures is left in their state folder. Then they
check themselves, and their answers go to a throw-away store, so that no run id is taken. Of silos in clusters it is tried whether their work would
be taken there; their images are looked at when a run starts.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedhelp_cli.commands import print_json, run_command
from fedhelp_components.check.__main__ import ask_silos, check_silos, missing_teachers, problems_of, problems_of_looking, raise_all
from fedhelp_components.check.start import settle_start
from fedhelp_components.session import say
from fedhelp_core.config.federation import Federation, is_values_of_chart, load_federation
from fedhelp_core.config.silo import SiloConfig, load_silo
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.datalist import manifest_of
from fedhelp_core.data.findings import remarks_about, remarks_about_labels
from fedhelp_core.data.ingest import all_items, sampled
from fedhelp_core.data.inspection import look_at
from fedhelp_core.data.problems import told
from fedhelp_core.data.reading import bits_in_use
from fedhelp_core.errors import AccessDenied, ConfigError, DataError, FedHelpError, TeacherError, TeacherUnavailable
from fedhelp_core.printable import printable
from fedhelp_core.protocol.pretrained import settle_pretrained
from fedhelp_core.protocol.run import Run
from fedhelp_core.report.picture_page import Looked, write_picture_pages
from fedhelp_core.softlabels.ledger import BudgetReached
from fedhelp_core.softlabels.trial import Tried, may_be_tried, trial
from fedhelp_core.softlabels.verdict import says_always_the_same
from fedhelp_core.store.open import open_store

_NAMED = 10  # silos that are listed by name


@dataclass(frozen=True)
class Checked:
    """What check found. `from_here`: problems that may be this machine's alone; `unseen`: what only a run looks at."""

    problems: list[FedHelpError]
    from_here: list[FedHelpError]
    unseen: list[str]


def check_and_print(path: Path, changes: Mapping[str, Any], *, sample: int | None = None, as_json: bool = False) -> None:
    """Check the federation at `path` with `changes`, and say what was found; `as_json`: once more for programs, on standard output alone.

    Values of the hub's chart name folders of its pods and a store with its own credentials: what of these is not found here is told, and no fault.
    `sample`: look at about so many images of each silo, not at all.

    Raises:
        ConfigError: the file is wrong, or several things are (every problem listed).
        DataError: silos' images are all that is wrong.
        FedHelpError: the only problem.
    """
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        found = _checked(load_federation(path).override(**changes), is_values_of_chart(path), sample)
        for problem in found.from_here:
            for line in str(problem).splitlines():
                say(f"cannot be seen from this machine, a run's pods may well see it: {line}")
    if as_json:
        print_json({"federation": str(path), "in_order": not found.problems, "problems": [str(problem) for problem in found.problems],
                    "not_seen_from_here": [str(problem) for problem in found.from_here], "not_looked_at": found.unseen})
    if found.problems and all(isinstance(problem, DataError) for problem in found.problems):
        raise DataError([line for problem in found.problems for line in str(problem).splitlines()])
    raise_all(found.problems)
    if as_json:
        return
    print(f"{path}: everything is in order; start it with: fedhelp {run_command(path, changes)}")
    if found.unseen:
        print(f"Not looked at yet: {'; '.join(found.unseen)}. A run does that before it trains.")


def _checked(federation: Federation, of_chart: bool, sample: int | None) -> Checked:
    problems, from_here = problems_of(federation), problems_of_looking(federation) + missing_teachers(federation)
    if not of_chart:
        problems, from_here = problems + from_here, []  # a run of this file looks from here, too
    unusable = _problems_of_images(federation, sample)
    problems += unusable
    if not unusable and sample is None:
        try:
            _check_silos_here(federation)
        except FedHelpError as e:
            if str(e) not in map(str, problems):  # of a model to start from: told above
                problems.append(e)
    look = not problems and sample is None and not of_chart
    untried = _untried_teachers(federation) if look else ["what the teachers answer"]
    problems += [problem for problem in untried if isinstance(problem, FedHelpError)]
    elsewhere = [silo.name for silo in federation.silos_in_clusters]
    if elsewhere:
        refused = _what_clusters_refuse(federation)
        unseen_there = [problem for problem in refused if from_here_alone(problem)] if of_chart else []
        from_here += unseen_there
        problems += [problem for problem in refused if problem not in unseen_there]
    unseen = [f"the images of {', '.join(elsewhere) if len(elsewhere) <= _NAMED else f'{len(elsewhere)} silos in clusters'}"] if elsewhere else []
    if sample is not None:
        unseen += ["all images but the sample", "whether the silos' work starts"]
    if federation.uses_public_set:
        unseen += ["whether every public image can be decoded", *(one for one in untried if isinstance(one, str))]
    return Checked(problems, from_here, unseen)


def _untried_teachers(federation: Federation) -> list[FedHelpError | str]:
    """Each teacher tried on a few public images, and told what it says; what is wrong with one, or why it was not tried."""
    public = federation.public_set
    if not federation.uses_public_set or public is None:
        return []
    store = open_store(federation.store.url, endpoint_url=federation.store.endpoint_url)
    found: list[FedHelpError | str] = []
    for teacher in public.teachers:
        if not may_be_tried(teacher):
            found.append(f"what teacher {teacher.name} answers, which costs money and has no budget (max_cost)")
            continue
        try:
            tried = trial(store, public, federation.task, teacher)
            print_trial(tried)
            if says_always_the_same(tried.answers_NC):
                found.append(TeacherError(tried.remarks[0]))
        except TeacherUnavailable as e:
            found.append(f"what teacher {teacher.name} answers, which was not reached ({e})")
        except BudgetReached:
            found.append(f"what teacher {teacher.name} answers, whose budget is used up")
        except FedHelpError as e:
            found.append(e)
    return found


def print_trial(tried: Tried) -> None:
    """What a teacher said, as a table, and what looks wrong with it."""
    table = Table("public image", "likeliest", "probability", "spread", box=box.SIMPLE_HEAD,
                  title=f"teacher {tried.teacher.name}: {len(tried.hashes)} public images, {tried.asked} of them asked about now")
    for row in tried.rows():
        table.add_row(*(printable(cell).replace("[", "\\[") for cell in row))
    Console(width=None if Console().is_terminal else 120).print(table)
    for remark in tried.remarks:
        say(f"look at this: {remark}")


def from_here_alone(problem: FedHelpError) -> bool:
    """Whether a cluster's refusal is of this machine's account, which is not the one that runs have."""
    return isinstance(problem, AccessDenied)


def _problems_of_images(federation: Federation, sample: int | None) -> list[FedHelpError]:
    """What is wrong with the images of silos on this machine, a DataError or ConfigError a silo; writes their pages of pictures."""
    problems: list[FedHelpError] = []
    hospitals: list[Looked] = []
    pages: dict[str, Path] = {}
    for silo in federation.silos_here:
        if silo.dispatch.silo_config is None:
            continue  # told by the silo's own check
        try:
            config = load_silo(silo.dispatch.silo_config)
            if config.name != silo.name:
                continue  # as above
            looked = looked_at(config, federation.task, sample)
        except (ConfigError, DataError) as e:
            problems.append(type(e)([_of_silo(silo.name, problem) for problem in e.problems]))
            continue
        hospitals.append(looked)
        pages[looked.silo] = config.state / "pictures.html"
        for remark in looked.remarks:
            say(remark)
        say(f"silo {looked.silo}: {len(looked.seen):,} of {looked.total:,} images looked at; see them: {pages[looked.silo]}")
        if looked.problems:
            problems.append(DataError(told(_of_silo(looked.silo, problem) for problem in looked.problems)))
    try:
        write_picture_pages(pages, hospitals, federation.task)
    except FedHelpError as e:
        problems.append(e)
    return problems


def _of_silo(silo: str, problem: str) -> str:
    return problem if problem.startswith(f"silo {silo}: ") else f"silo {silo}: {problem}"


def looked_at(config: SiloConfig, task: TaskConfig, sample: int | None) -> Looked:
    """The silo's images, or about `sample` of them, looked at.

    Raises:
        ConfigError, DataError: its lists cannot be used.
    """
    manifest = manifest_of(config, task)
    bits = manifest.pixel_bits or bits_in_use(all_items(manifest), task)
    seen = list(look_at(all_items(sampled(manifest, sample)), task, bits=bits))
    return Looked(
        config.name, seen, len(all_items(manifest)), bits=bits,
        remarks=[*manifest.notes, *remarks_about_labels(config.name, manifest, task), *remarks_about(config.name, seen, bits)],
        problems=[one.problem for one in seen if one.problem])


def _check_silos_here(federation: Federation) -> None:
    here = [silo.model_dump(mode="json") for silo in federation.silos_here]
    if not here:
        return
    all_here = len(here) == len(federation.silos)
    with _kept_on_failure("fedhelp-check-") as folder:
        fewer = {} if all_here else {"silos": here, "protocol.min_silos": 1}
        local = federation.override(**{"store.url": folder, "store.endpoint_url": None, **fewer})
        run = Run(open_store(folder), "check")
        run.freeze(local.to_yaml())
        theirs = open_store(federation.store.url, endpoint_url=federation.store.endpoint_url)
        settle_start(federation, theirs, run)
        settle_pretrained(federation, theirs, run.store)
        if all_here:
            check_silos(local, run.store, run)
            return
        for silo, report in ask_silos(local, run).items():  # who is large depends on the others' counts too
            say(f"silo {silo}: {report.samples.training} training images")


@contextmanager
def _kept_on_failure(prefix: str) -> Iterator[str]:
    """A temporary folder; where silos were asked and one failed it stays, since the sentence about that names its logs."""
    folder, kept = tempfile.mkdtemp(prefix=prefix), False
    try:
        yield folder
    except FedHelpError:
        kept = Path(folder, "logs").exists()
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _what_clusters_refuse(federation: Federation) -> list[FedHelpError]:
    from fedhelp_dispatch.preflight import preflight  # its `kubernetes` takes seconds to import

    found = preflight(federation)
    for silo in federation.silos:
        if silo.name in found and found[silo.name] is None:
            say(f"silo {silo.name}: {silo.dispatch.how.taken}")
    return [type(problem)(f"silo {silo}: {problem}") for silo, problem in found.items() if problem is not None]
