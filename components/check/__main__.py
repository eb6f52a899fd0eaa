"""Check a federation and every silo's data, list everything wrong at once, and freeze the run.

    python -m fedhelp_components.check --federation federation.yaml --run-id my-run

Called by the kfp component and by `fedhelp check`. What it leaves in the store: runs/<run>/federation.yaml, a report per silo,
the start model (commit 0) and what it comes from if from no seed, which silos are large, and how common classes are.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedhelp_components.check.account import account_problems, say_which_tokens_end
from fedhelp_components.check.form import FIELDS
from fedhelp_components.check.start import find_start, settle_start
from fedhelp_components.session import dispatcher_for, end, ends_in_mlflow, say
from fedhelp_core.algorithm.averaging import shares_of
from fedhelp_core.algorithm.class_shares import pooled_of_decisions
from fedhelp_core.config.federation import Federation, checked_value, default_of, load_federation
from fedhelp_core.config.start import StartConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig
from fedhelp_core.config.trust import require_trusted
from fedhelp_core.data.public import preparation_of
from fedhelp_core.errors import ConfigError, DataError, FedHelpError, NotFound, PermanentError
from fedhelp_core.places import require_temporary_folder
from fedhelp_core.protocol.documents import SiloReport
from fedhelp_core.protocol.facts import ClassShares, Kinds, Tracked
from fedhelp_core.protocol.keys import ModelKeys, RunKeys
from fedhelp_core.protocol.kinds import resolve_kinds
from fedhelp_core.protocol.pretrained import require_pretrained_files, settle_pretrained
from fedhelp_core.protocol.report_check import require_credible_report
from fedhelp_core.protocol.run import Run
from fedhelp_core.softlabels.image_sources import open_sources
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.server import is_server, require_usable, tracking_uri
from fedhelp_dispatch.supervisor import require_none_failed, run_everywhere, unanswered

ENDPOINT_VARIABLE = "FEDHELP_STORE_ENDPOINT"
"""The S3 endpoint of the store that the hub's chart names."""


@dataclass(frozen=True)
class Checked:
    """A run that may start."""

    store: str
    endpoint_url: str
    run: str
    silos: list[str]
    shards: list[str]
    """Shares of the public images that teachers are asked about beside each other, such as 1/2 and 2/2."""


@dataclass(frozen=True)
class Shown:
    """What Kubeflow calls the run that this check is a task of."""

    name: str
    job: str


def run(*, federation: str, run_id: str, settings: Mapping[str, Any], shown: Shown | None = None) -> Checked:
    """Check everything; see the module's docstring. `shown`: the run of Kubeflow that the run in MLflow is named by.

    Raises:
        ConfigError: the file or the settings are wrong (every problem listed).
        JobFailed: a silo found its data wrong (every silo listed).
        RunConflict: `run_id` belongs to another config.
        FedHelpError: the store, the public images or another single thing is wrong.
    """
    config = read_federation(federation)
    return start(_formed(config, settings) if settings else config, run_id, shown)


def start(config: Federation, run_id: str, shown: Shown | None = None) -> Checked:
    """`run` for a federation that was read already."""
    require_trusted(config)  # before anything that it names is opened
    raise_all(static_problems(config.model_copy(update={"start": "seed"})))  # what it starts from is settled below, once
    store = open_store(config.store.url, endpoint_url=config.store.endpoint_url)
    started = Run(store, run_id)
    started.freeze(config.to_yaml())
    started.clear_abort()
    say_where_it_is_seen(config, started, shown)
    with ends_in_mlflow(config, run_id):
        if (before := settle_start(config, store, started)) is not None:
            what = f"{before.model} version {before.version}" if before.version else "a file"
            say(f"starts from {what}, weights {before.weights.sha256[:12]}")
        settle_pretrained(config, store, started.store)
        say_which_tokens_end(config)
        check_silos(config, store, started)
    return Checked(config.store.url, config.store.endpoint_url or "", run_id, list(config.silo_names), shards_of(config))


def say_where_it_is_seen(config: Federation, run: Run, shown: Shown | None) -> None:
    """The run's page in MLflow, where rounds appear as they close; nothing where MLflow is a file, and no more than a warning where it is away."""
    uri = tracking_uri(config)
    if not is_server(uri):
        return
    from fedhelp_core.tracking.runs import announce

    try:
        address = announce(config, run.run_id, name=shown.name if shown else "", tags={"fedhelp.kubeflow_run": shown.job} if shown else {})
    except FedHelpError as e:
        say(f"the run cannot be shown in MLflow for now, and goes on: {e}")
        return
    run.note(Tracked(address=address))
    say(f"rounds appear in MLflow as they close: {address}")


def _formed(config: Federation, settings: Mapping[str, Any]) -> Federation:
    """`config` with the run's form on top, and said what that replaces: a form's default may undo what a file says on purpose."""
    formed = config.changed(settings, source="the run's form")
    old, new = config.values_at(settings), formed.values_at(settings)
    for dotted, value in new.items():
        if value != old[dotted]:
            say(f"the run's form replaces {dotted}: {value!r} instead of the file's {old[dotted]!r}")
    return formed


def shards_of(config: Federation) -> list[str]:
    """One share, where there is nothing to ask."""
    total = config.public_set.shards if config.uses_public_set and config.public_set is not None else 1
    return [f"{number}/{total}" for number in range(1, total + 1)]


def run_form(federation: str, run_id: str, form: Mapping[str, Any], shown: Shown | None = None) -> Checked:
    """`run` with the pipeline's form, by its parameters' own names.

    Raises:
        ConfigError: fields of the form that are wrong by themselves, before anything is opened, and all that `run` raises.
    """
    form = checked_form(run_id, form)
    return run(federation=federation, run_id=run_id, settings={FIELDS[name]: value for name, value in form.items()}, shown=shown)


def checked_form(run_id: str, form: Mapping[str, Any]) -> dict[str, Any]:
    """`form` as the federation's fields take its values.

    Raises:
        ConfigError: every field that is wrong, by the name that the form shows.
    """
    problems = [f"the run's form: field run_id: {problem}" for problem in _problems_of_run_id(run_id)]
    checked: dict[str, Any] = {}
    for name, value in form.items():
        whole = isinstance(value, float) and value.is_integer() and isinstance(default_of(FIELDS[name]), int)  # Kubeflow's numbers have one type
        try:
            checked[name] = checked_value(FIELDS[name], int(value) if whole else value, source=f"the run's form: field {name}")
        except ConfigError as e:
            problems.extend(e.problems)
    if problems:
        raise ConfigError(problems)
    return checked


def _problems_of_run_id(run_id: str) -> list[str]:
    try:
        RunKeys(run_id)
    except PermanentError as e:
        return [str(e)]
    return []


def check_silos(config: Federation, store: Store, run: Run) -> None:
    """Have every silo check itself, decide who is large, and pool how common classes are.

    Raises:
        JobFailed, PermanentError, RetryableError: as `ask_silos`.
        ConfigError: teachers would be asked, and nobody would learn from their answers.
    """
    reports = ask_silos(config, run)
    counts = {silo: report.samples.training for silo, report in reports.items()}
    if not config.task.per_pixel:
        weights = shares_of([counts[silo] for silo in config.silo_names], config.algorithm.weighting)
        told = [reports[silo] for silo in config.silo_names]
        findings = config.task.form == "labels"
        shares = pooled_of_decisions([decision_counts(report, findings=findings) for report in told], weights, findings=findings)
        run.settle(ClassShares(shares=shares.tolist()))
    say_how_large(config, reports[config.silo_names[0]])
    kinds = run.settle(Kinds(resolve_kinds(config, counts))).root
    for silo in config.silo_names:
        say(f"silo {silo}: {counts[silo]} training images, {kinds[silo]}")
    if config.uses_public_set and "small" not in kinds.values():
        raise ConfigError(
            "algorithm.large_silos: no silo is small, and only small ones learn from soft labels, so teachers would be asked for nothing;"
            " lower it, or choose method fedhelp-no-api")


def decision_counts(report: SiloReport, *, findings: bool) -> list[list[int]]:
    """Of the decision between classes, training images of each; of each of several findings, those labelled to be without it, and with it."""
    if not findings:
        return [report.training_class_counts]
    return [
        [known - with_it, with_it] for known, with_it in zip(report.training_labelled_counts, report.training_class_counts, strict=True)]


def say_how_large(config: Federation, report: SiloReport) -> None:
    """The models, as a silo's software found them: parameters, what travels, arithmetic, memory."""
    algorithm = config.algorithm
    for which, model in (("proxy", algorithm.proxy_model), ("large", algorithm.large_model)):
        size = report.models.get(which)  # type: ignore[call-overload]  # a literal of the document's
        if size is None:
            continue
        megabytes = f"{size.travelling_bytes / 1e6:,.1f} MB"
        moves = f"{megabytes} up and down a round and silo" if which == "proxy" else f"{megabytes} that stay in the silo"
        say(f"{which} model {model}: {size.parameters:,} parameters, {moves}, {size.flops / 1e9:,.2f} GFLOP an image, about"
            f" {size.training_bytes / 1e9:,.2f} GB to train")
        if size.pretrained:
            say(f"{which} model {model} begins with pretrained weights: {size.pretrained}")
        if which == "proxy" and algorithm.normalisation == "silo" and not size.batch_norms:
            say(f"{which} model {model} has no batch norms, so normalisation 'silo' keeps nothing at home: group and instance norms have no"
                " statistics of a hospital's, and travel like all weights")
    if "large" in report.models and report.models["large"].parameters < report.models["proxy"].parameters:
        say(f"look at this: the large model ({algorithm.large_model}) has fewer parameters than the one that travels ({algorithm.proxy_model}); is"
            " algorithm.large_model meant so?")


def ask_silos(config: Federation, run: Run) -> dict[str, SiloReport]:
    """Every silo's report of itself (those that made one are not asked again); they agree on the start model.

    Raises:
        JobFailed: a silo found something wrong (every silo listed), checked itself under another name, or reports nonsense.
        RetryableError: all that failed met the same one, such as a full disk.
        PermanentError: the silos' software is not the same, or the start model in the store is not the one that they draw.
    """
    dispatcher = dispatcher_for(config, run.run_id)
    try:
        failed = run_everywhere("check", config, run, dispatcher, say, run.has_silo_report)
        require_none_failed(failed, "check")
    finally:
        dispatcher.close()
    reports = _reports(config, run)
    starts = {silo: report.start_sha256 for silo, report in reports.items()}
    if len(set(starts.values())) != 1:
        listed = ", ".join(f"{silo}: {sha[:12]}" for silo, sha in starts.items())
        raise PermanentError(f"silos draw different start models from the same seed ({listed}); give all of them the same image version")
    start = run.commit(0)
    if start is None:
        raise NotFound(f"run {run.run_id!r}: every silo has checked itself, but none has written the start model; start another run")
    run.require_start(start, next(iter(starts.values())))
    return reports


def _reports(config: Federation, run: Run) -> dict[str, SiloReport]:
    """Every silo's, read. Raises JobFailed with all that are missing or make no sense."""
    found, failed = {}, {}
    for silo in config.silo_names:
        try:
            report = run.silo_report(silo)
            if report is not None:
                require_credible_report(report, config.task)
        except PermanentError as e:
            failed[silo] = unanswered(f"its report makes no sense: {e}")
            continue
        if report is None:
            failed[silo] = unanswered("its work ended well, but left no report under this name; does the silo.yaml it was given carry another name?")
        else:
            found[silo] = report
    require_none_failed(failed, "check")
    return found


def read_federation(source: str) -> Federation:
    """federation.yaml from a path or an s3:// URL (credentials from the environment)."""
    return federation_in(downloaded(source), source) if source.startswith("s3://") else load_federation(source)


def downloaded(url: str) -> bytes:
    """The object at s3:// URL `url`, of at most 1 MiB (credentials from the environment).

    It is asked for where the hub's chart says that its own store is, or else at AWS: a URL cannot say.
    """
    folder, _, name = url.rpartition("/")
    endpoint = os.environ.get(ENDPOINT_VARIABLE) or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        return open_store(folder, endpoint_url=endpoint).get(name, 2**20)
    except FedHelpError as e:
        if endpoint is None:
            e.add_note(
                f"the run's form: field federation: {url} was asked for at AWS; where it is in another S3, set federation.store.endpoint_url in the"
                " hub's values, or AWS_ENDPOINT_URL")
        raise


def federation_in(body: bytes, source: str) -> Federation:
    """The federation that `body`, a federation.yaml, holds; `source` names it in messages."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "federation.yaml"
        copy.write_bytes(body)
        try:
            return load_federation(copy)
        except ConfigError as e:
            raise ConfigError([problem.replace(str(copy), source) for problem in e.problems]) from e


def static_problems(config: Federation) -> list[FedHelpError]:
    """What can be found to be wrong without asking a silo or a teacher. Writes to the store and removes what it wrote."""
    return problems_of(config) + problems_of_looking(config)


def problems_of_looking(config: Federation) -> list[FedHelpError]:
    """What of `static_problems` depends on where one looks from: folders, credentials, the way to the store."""
    looks: list[Callable[[], object]] = [require_temporary_folder, lambda: _require_store(config), lambda: require_pretrained_files(config)]
    if isinstance(config.start, StartConfig):
        looks.append(partial(_require_start, config, config.start))
    if config.uses_public_set and config.public_set is not None:
        looks.append(partial(_require_public_images, config.public_set, config.task))
    by_account = any(silo.dispatch.kind == "kubernetes" and silo.dispatch.context is None for silo in config.silos)
    return [*map(ConfigError, account_problems() if by_account else ()), *_problems_of(looks)]


def problems_of(config: Federation) -> list[FedHelpError]:
    """What is wrong with a file for a run through the pipelines, by itself: nothing is looked at."""
    found: list[FedHelpError] = []
    if config.algorithm.method == "local":
        found.append(ConfigError("algorithm.method: 'local' has no federation to run; compare it with `fedhelp simulate --methods local,...`"))
    if config.silos_in_clusters and config.store.folder is not None:
        found.append(ConfigError(
            f"store.url: silo {config.silos_in_clusters[0].name!r} works in a cluster that cannot see folder {config.store.url!r}; give s3://bucket/prefix"))
    return found + _problems_of([lambda: require_usable(tracking_uri(config)), lambda: _require_name(config)])


def _problems_of(looks: Sequence[Callable[[], object]]) -> list[FedHelpError]:
    found: list[FedHelpError] = []
    for look in looks:
        try:
            look()
        except FedHelpError as e:
            found.append(e)
    return found


def missing_teachers(config: Federation) -> list[FedHelpError]:
    """Teachers that are folders of this machine and are not there. In a cluster, the pod that asks may see other folders than the one that checks."""
    teachers = config.public_set.teachers if config.uses_public_set and config.public_set is not None else ()
    return [
        ConfigError(f"public_set.teachers.{number}.uri: teacher {teacher.name!r} is to be a folder with an MLflow model, and {teacher.uri} is none;"
                    " correct the path, or give models:/NAME/VERSION")
        for number, teacher in enumerate(teachers)
        if teacher.kind == "mlflow" and ":" not in teacher.uri.partition("/")[0] and not os.path.isdir(teacher.uri)]


def raise_all(problems: Sequence[FedHelpError]) -> None:
    """Nothing where there are none; one as it is; several as one ConfigError that lists them.

    Raises:
        FedHelpError: see above.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError([str(problem) for problem in problems])


def _require_store(config: Federation) -> None:
    """A store that keeps its promises."""
    folder = config.store.folder
    if folder is not None and os.path.isfile(folder):
        raise ConfigError(f"store.url: a folder expected, but {folder} is a file")
    open_store(config.store.url, endpoint_url=config.store.endpoint_url).probe()


def _require_name(config: Federation) -> None:
    """The registered model's name is part of the names under which hospitals read what becomes champion."""
    try:
        ModelKeys(config.registered_name)
    except PermanentError as e:
        raise ConfigError(f"tracking.registered_model: {e}") from e


def _require_start(config: Federation, start: StartConfig) -> None:
    """A model to start from that fits, as far as can be told without its network."""
    find_start(config, start, open_store(config.store.url, endpoint_url=config.store.endpoint_url))


def _require_public_images(public: PublicSetConfig, task: TaskConfig) -> None:
    """At least one; whether they can be decoded shows when they are, before the first teacher is asked."""
    preparation = preparation_of(task)
    if next(open_sources(public.images, public.layout, preparation), None) is None:
        raise DataError(
            f"public_set.images: {public.images} holds no image ({', '.join(preparation.suffixes)}); give the folder of public images,"
            " or set public_set.layout")


def main() -> None:
    """Parse, check, print."""
    parser = argparse.ArgumentParser(prog="python -m fedhelp_components.check", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--federation", required=True, help="path or s3:// URL of federation.yaml")
    parser.add_argument("--run-id", required=True, help="name of the run; the same again resumes it")
    parser.add_argument("--settings", default="{}", type=json.loads, help='JSON of replacements, e.g. \'{"algorithm.rounds": 3}\'')
    arguments = parser.parse_args()
    end("check", lambda: say(json.dumps(run(
        federation=arguments.federation, run_id=arguments.run_id, settings=arguments.settings).__dict__)))


if __name__ == "__main__":
    main()
