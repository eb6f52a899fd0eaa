"""What `fedhelp run` says at its end: a table of scores, what became of the model, and the commands to go on with. Called by run.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fedhelp_cli.commands import own_command, quoted, run_command
from fedhelp_cli.open_page import local_report
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import FedHelpError
from fedhelp_core.printable import without_passwords
from fedhelp_core.protocol.facts import Candidate, Promotion
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.open import open_store


@dataclass(frozen=True)
class Ending:
    """The end of run `run_id` of `federation`, which is the file at `path` with `changes` to it."""

    path: Path
    federation: Federation
    run_id: str
    changes: Mapping[str, Any]
    log: Path

    def was_before(self) -> bool:
        """Whether the run has come to its end already, with this config, and its model is registered still. False where nobody can tell."""
        try:
            run = self._run()
            run.fact(Promotion)
            version = run.fact(Candidate).version
            if run.federation_yaml() != self.federation.to_yaml():
                return False
            print(f"run {self.run_id} was finished before; MLflow is asked what has become of its model", flush=True)
            from fedhelp_core.tracking.registry import Registry  # with MLflow, which takes a second or two to import

            return Registry.for_federation(self.federation).run_of(self.federation.registered_name, version) == self.run_id
        except FedHelpError:
            return False

    def tell(self) -> None:
        """After a run."""
        fact = self._run().fact(Promotion)
        self._tell_of_the_model(fact.decision)
        self._tell_how_to_go_on(can_roll_back=bool(fact.before), can_promote=fact.outcome != "promoted")

    def tell_again(self) -> None:
        """Instead of a run that has ended before: that nothing was done, and what the model is now."""
        from fedhelp_components.evaluation.report import write_report
        from fedhelp_core.tracking.registry import Registry

        print(f"Nothing was trained; this starts another one: {self._another_run()}\n")
        run, registry = self._run(), Registry.for_federation(self.federation)
        write_report(run.store, self.run_id, self.federation)  # a kill may have come between the gate and this
        version, champion = run.fact(Candidate).version, registry.champion(self.federation.registered_name)
        said = run.fact(Promotion).decision
        now = "is the champion" if champion == version else f"is not the champion, {f'version {champion}' if champion else 'none'} is"
        self._tell_of_the_model(f"{self.federation.registered_name} version {version} {now} (when the run ended: {said})")
        self._tell_how_to_go_on(
            can_roll_back=champion == version and registry.champion_before(self.federation.registered_name) is not None,
            can_promote=champion != version)

    def _tell_of_the_model(self, standing: str) -> None:
        from fedhelp_components.evaluation.report import facts_of_run, summary_table

        out = Console()
        run = self._run()
        out.print(summary_table(facts_of_run(run.store, self.run_id, self.federation)))
        for line in (f"final model sha256 {run.fact(Candidate).global_sha256}", standing):
            out.print(line, highlight=False, markup=False, soft_wrap=True)

    def _tell_how_to_go_on(self, *, can_roll_back: bool, can_promote: bool) -> None:
        from fedhelp_core.tracking.server import tracking_uri

        report = local_report(self._run().store, self.run_id)
        print()
        _line("Report", report, link=report)
        _line("Log", self.log, link=self.log.resolve())
        _line("Open", f"{own_command('fedhelp')} open {quoted(self.path)}  (with --mlflow: MLflow)")
        _line("MLflow", f"{own_command('mlflow')} ui --backend-store-uri {quoted(without_passwords(tracking_uri(self.federation)))}")
        if can_promote:
            _line("Promote", f"{own_command('fedhelp')} promote {quoted(self.path)}  (whatever the gate said)")
        if can_roll_back:
            _line("Roll back", f"{own_command('fedhelp')} rollback {quoted(self.path)}")
        else:
            _line("Run again", f"{self._another_run()}  (with another seed)")

    def _another_run(self) -> str:
        """The same run with the next seed; it has its own id, since the id is made of the config."""
        changes = {**self.changes, "runtime.seed": self.federation.runtime.seed + 1}
        return f"{own_command('fedhelp')} {run_command(self.path, changes)}"

    def _run(self) -> Run:
        store = self.federation.store
        return Run(open_store(store.url, endpoint_url=store.endpoint_url), self.run_id)


def _line(name: str, value: object, *, link: Path | None = None) -> None:
    """A line to go on with; on a terminal that knows how, `value` is a link to the file `link`."""
    text = Text(f"{name:<11}")
    text.append(str(value), style=f"link {link.as_uri()}" if link is not None else "")
    Console().print(text, soft_wrap=True)
