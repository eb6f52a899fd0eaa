"""A run that goes on from a model: from the champion, a version or a file, checked by hub and hospitals, with what hospitals kept of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_components.check.__main__ import problems_of
from fedhelp_components.check.start import find_start, settle_start
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, carried_over, initial_weights, large_model_of
from fedhelp_core.config.federation import Federation, federation_in, parse_federation
from fedhelp_core.config.silo import load_silo
from fedhelp_core.config.start import StartConfig
from fedhelp_core.errors import ConfigError, FedHelpError, NotFound, PermanentError, WeightsError
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.facts import StartedFrom
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.model_record import read_records
from fedhelp_core.protocol.run import Run
from fedhelp_core.silo.state import StateFolder
from fedhelp_core.silo.work import open_silo
from fedhelp_core.store.local import LocalStore
from fedhelp_core.store.open import open_store
from fedhelp_core.weights.file import fingerprint, write_weights
from tests.tiny import TinyFederation, processes, succeeded

DOCUMENT: dict[str, Any] = {
    "name": "tiny", "task": {"image_size": 16}, "algorithm": {"method": "fedavg", "proxy_model": "resnet8"}, "store": {"url": "store"},
    "silos": [{"name": "aachen", "dispatch": {"silo_config": "aachen.yaml"}}]}
SHA = "0123456789abcdef" * 4


def federation(**changes: Any) -> Federation:
    return parse_federation({**DOCUMENT, **changes}, source="federation.yaml")


class TestTheFile:
    def test_a_federation_without_these_sections_keeps_its_text_and_sha256(self) -> None:
        plain = federation()
        assert plain.start == "seed" and not {"start", "card"} & set(plain.model_dump(mode="json"))
        assert federation(start="seed").digest() == plain.digest()
        assert federation_in(plain.to_yaml(), source="frozen") == plain

    def test_a_start_is_frozen_with_the_run_and_champion_may_be_one_word(self) -> None:
        started = federation(start="champion")
        assert started == federation(start={"model": "champion"}) and started.digest() != federation().digest()
        assert federation_in(started.to_yaml(), source="frozen") == started
        assert federation().override(start="champion") == started
        assert started.override(start="seed") == federation()

    def test_a_registered_name_that_hospitals_could_not_read_is_found_before_the_run(self) -> None:
        (problem,) = problems_of(federation(tracking={"registered_model": "chest X-rays"}))
        assert str(problem).startswith("tracking.registered_model: registered model 'chest X-rays': 1 to 100 letters")

    @pytest.mark.parametrize(("start", "says"), [
        ("champ", "start"), ({}, "one of model, version and file expected, got none"), ({"version": "3", "model": "champion"}, "got model, version"),
        ({"file": "a.safetensors"}, "sha256: a file needs it"), ({"version": "x"}, "version"), ({"version": 3}, "version"),
        ({"file": "a", "sha256": "abc"}, "sha256"), ({"model": "candidate"}, "model"), ({"turbo": 1}, "turbo"), (3, "start")])
    def test_what_names_no_one_model_is_refused_in_a_sentence(self, start: Any, says: str) -> None:
        with pytest.raises(ConfigError, match=says) as refusal:
            federation(start=start)
        assert all(problem.startswith("federation.yaml: start") for problem in refusal.value.problems), refusal.value.problems

    def test_a_hub_in_a_pod_opens_no_file_that_a_stranger_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from fedhelp_core.config.trust import TRUST_VARIABLE, require_trusted

        (tmp_path / "trust.json").write_text('{"store_urls": ["store"]}', encoding="utf-8")
        monkeypatch.setenv(TRUST_VARIABLE, str(tmp_path / "trust.json"))
        require_trusted(federation(start="champion"))
        with pytest.raises(ConfigError, match=r"start\.file: a file of this hub's pods is nobody's to name"):
            require_trusted(federation(start={"file": "/etc/passwd", "sha256": SHA}))


class TestAFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> tuple[Path, str]:
        """Weights of the tiny federation's own network."""
        weights = initial_weights(federation().algorithm, objective_of(federation().task), seed=99)
        return tmp_path / "weights.safetensors", write_weights(tmp_path / "weights.safetensors", weights, "resnet8")

    def test_it_is_settled_once_and_copied_to_where_hospitals_read(self, file: tuple[Path, str], tmp_path: Path) -> None:
        path, sha256 = file
        config, store = federation(start={"file": str(path), "sha256": sha256}), LocalStore(tmp_path / "store")
        run = Run(store, "a-run")
        settled = settle_start(config, store, run)
        assert settled is not None and (settled.weights.sha256, settled.version, settled.run) == (sha256, "", "")
        assert store.get(ModelKeys("tiny").weights(sha256)) == path.read_bytes()
        path.unlink()
        assert settle_start(config, store, run) == settled, "a run that is resumed asks nobody again"
        assert settle_start(federation(), store, Run(store, "another")) is None

    @pytest.mark.parametrize(("change", "error", "says"), [
        pytest.param(lambda path: path.unlink(), NotFound, "no file", id="missing"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"), ConfigError, r"start\.sha256", id="one byte altered"),
        pytest.param(lambda path: path.write_bytes(b"hello"), WeightsError, "truncated", id="no weights"),
        pytest.param(lambda path: path.write_bytes(b"\x80\x04" + b"x" * 100), WeightsError, "pickle", id="a pickle"),
        pytest.param(lambda path: path.write_bytes(b""), WeightsError, "truncated", id="empty")])
    def test_another_file_is_refused(
        self, file: tuple[Path, str], tmp_path: Path, change: Callable[[Path], Any], error: type[FedHelpError], says: str,
    ) -> None:
        path, sha256 = file
        change(path)
        config = federation(start={"file": str(path), "sha256": sha256})
        store = LocalStore(tmp_path / "store")
        with pytest.raises(error, match=says):
            settle_start(config, store, Run(store, "a-run"))
        assert store.list("") == []

    def test_another_network_and_nan_are_refused(self, tmp_path: Path) -> None:
        objective, store = objective_of(federation().task), LocalStore(tmp_path / "store")
        other = federation(algorithm={"method": "fedavg", "proxy_model": "resnet14"})
        weights = initial_weights(other.algorithm, objective, seed=1)
        sha256 = write_weights(tmp_path / "other.safetensors", weights, "resnet14")
        config = federation(start={"file": str(tmp_path / "other.safetensors"), "sha256": sha256})
        with pytest.raises(ConfigError, match=r"a model of network 'resnet8' .* expected, got 'resnet14'"):
            settle_start(config, store, Run(store, "a-run"))
        weights = initial_weights(federation().algorithm, objective, seed=1)
        weights["head.bias"] = np.full_like(weights["head.bias"], np.nan)
        sha256 = write_weights(tmp_path / "nan.safetensors", weights, "resnet8")
        config = federation(start={"file": str(tmp_path / "nan.safetensors"), "sha256": sha256})
        with pytest.raises(WeightsError, match="not finite"):
            settle_start(config, store, Run(store, "a-run"))
        assert store.list("") == []


class TestWhatIsCarriedOver:
    def settings(self, **changes: Any) -> UpdateSettings:
        config = federation(algorithm={"method": "fedhelp", "proxy_model": "resnet8", "large_model": "resnet14", **changes}, public_set={
            "images": "public", "teachers": [{"name": "drawn", "uri": "teacher", "classes": 5}]})
        return UpdateSettings(algorithm=config.algorithm, objective=objective_of(config.task), seed=1, silo="aachen", kind="large")

    def test_a_large_model_and_batch_norms_go_on_and_moments_do_not(self) -> None:
        settings = self.settings(normalisation="silo")
        large = large_model_of(SiloState.empty(), settings).state_dict()
        norms = {name: tensor for name, tensor in settings.objective.build("resnet8").state_dict().items() if ".norm" in name}
        before = SiloState(round=9, tensors={
            **{f"large/{name}": tensor for name, tensor in large.items()}, **{f"normalisation/{name}": tensor for name, tensor in norms.items()},
            "optimizer_large/0/exp_avg": large["head.bias"]})
        carried = carried_over(before, settings, public_outputs=None)
        assert carried.round == 0 and set(carried.tensors) == set(before.tensors) - {"optimizer_large/0/exp_avg"}
        small = replace(settings, kind="small")
        assert {name.partition("/")[0] for name in carried_over(before, small, public_outputs=5).tensors} == {"normalisation"}
        shared = self.settings()
        assert {name.partition("/")[0] for name in carried_over(before, shared, public_outputs=None).tensors} == {"large"}

    def test_what_is_of_another_form_or_not_whole_is_left_behind(self) -> None:
        settings = self.settings()
        large = large_model_of(SiloState.empty(), self.settings(large_model="resnet8")).state_dict()
        before = SiloState(round=9, tensors={f"large/{name}": tensor for name, tensor in large.items()})
        assert carried_over(before, settings, public_outputs=None).tensors == {}
        whole = large_model_of(SiloState.empty(), settings).state_dict()
        whole.popitem()
        assert carried_over(SiloState(round=9, tensors={f"large/{n}": t for n, t in whole.items()}), settings, public_outputs=None).tensors == {}
        assert carried_over(SiloState.empty(), settings, public_outputs=None).tensors == {}


@pytest.mark.slow
class TestARun:
    @pytest.fixture(scope="class")
    def promoted(self, finished: Callable[..., TinyFederation], tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
        """A first run, whose model is the champion, and a second that stays a candidate."""
        first = finished()
        tiny = TinyFederation(shutil.copytree(first.folder, tmp_path_factory.mktemp("promoted") / "copy"), first.drawn)
        with processes() as started:
            succeeded(started.fedhelp("run", tiny.path, "--run-id", "second", "--set", "runtime.seed=6", "--set", "promotion.mode=manual"))
        return tiny

    @pytest.fixture
    def tiny(self, promoted: TinyFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyFederation:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return TinyFederation(shutil.copytree(promoted.folder, tmp_path / "copy"), promoted.drawn)

    def test_month_two_starts_from_the_champion_and_the_large_silo_goes_on_with_its_large_model(self, tiny: TinyFederation) -> None:
        with processes() as started:
            said = succeeded(started.fedhelp(
                "run", tiny.path, "--run-id", "month-2", "--set", "start=champion", "--set", "promotion.max_regression=1.0"))
        start = tiny.run("month-2").commit(0)
        assert start is not None and start.global_sha256 == tiny.final_sha256("first")
        fact = tiny.run("month-2").fact(StartedFrom)
        assert (fact.model, fact.version, fact.run) == ("tiny", "1", "first")
        log = "".join(path.read_text(encoding="utf-8") for path in tiny.folder.rglob("*.log"))
        assert '"event": "carried_over", "silo": "aachen", "run": "first", "parts": ["large"]' in said + log
        assert '"event": "carried_over", "silo": "brno", "run": "first", "parts": ["public_head"]' in said + log
        records = read_records(open_store(str(tiny.store)), "tiny")
        if len(records) == 2:
            assert records[1].lineage.parent is not None and records[1].lineage.parent.version == "1"
        card = (tiny.store / "runs" / "month-2" / "card.md").read_text(encoding="utf-8")
        assert f"tiny version 1, {tiny.final_sha256('first')}" in card
        with processes() as started:
            succeeded(started.fedhelp(
                "run", tiny.path, "--run-id", "alone", "--set", 'start={"model": "champion", "carry_over": false}'))
        assert tiny.final_sha256("alone") != tiny.final_sha256("month-2"), "the large model taught the proxy what it knew"

    def test_check_tries_it_with_every_silo_and_tells_a_fault_once(self, tiny: TinyFederation) -> None:
        with processes() as started:
            assert "everything is in order" in succeeded(started.fedhelp("check", tiny.path, "--set", "start=champion"))
            process = started.fedhelp("check", tiny.path, "--set", 'start={"version": "9"}')
            output, _ = process.communicate(timeout=240)
        assert process.returncode != 0 and output.count("Model Version") + output.count("version") >= 1
        assert len({line for line in output.splitlines() if "error" in line}) == 1
        assert not (tiny.store / "runs" / "check").exists()

    def test_a_version_that_was_never_promoted_can_be_started_from(self, tiny: TinyFederation) -> None:
        config = tiny.load().override(start={"version": "2"})
        store = open_store(str(tiny.store))
        found = find_start(config, StartConfig(version="2"), store)
        assert (found.weights.sha256, found.run) == (tiny.final_sha256("second"), "second")
        settled = settle_start(config, store, Run(store, "next"))
        assert settled is not None and store.size(ModelKeys("tiny").weights(settled.weights.sha256)) == settled.weights.size_bytes

    @pytest.mark.parametrize(("changes", "says"), [
        ({"start": {"version": "7"}}, "no version|not found|RESOURCE"),
        ({"start": "champion", "tracking.registered_model": "skin"}, "model 'skin' has no champion yet"),
        ({"start": {"model": "champion", "sha256": SHA}}, r"start\.sha256: 0123456789ab\.\.\. expected"),
        ({"start": "champion", "task.classes": list("abcdefgh")}, "was trained for melanoma .* this federation is for melanoma"),
        ({"start": "champion", "algorithm.proxy_model": "resnet14"}, "a model of network 'resnet14' .* expected, got 'resnet8'"),
    ])
    def test_what_cannot_be_started_from_is_found_by_check(self, tiny: TinyFederation, changes: dict[str, Any], says: str) -> None:
        config = tiny.load().override(**changes)
        assert isinstance(config.start, StartConfig)
        with pytest.raises(FedHelpError, match=says):
            find_start(config, config.start, open_store(str(tiny.store)))

    def started(self, tiny: TinyFederation, **changes: Any) -> tuple[Federation, Run]:
        """A run that starts from the champion, frozen and settled."""
        config = tiny.load().override(start="champion", **changes)
        store = open_store(str(tiny.store))
        run = Run(store, "next")
        run.freeze(config.to_yaml())
        settle_start(config, store, run)
        return config, run

    def test_a_hospital_holds_the_weights_against_its_own_network(self, tiny: TinyFederation) -> None:
        config, run = self.started(tiny)
        silo = open_silo(load_silo(tiny.folder / "brno.yaml"), run.store, "next")
        assert fingerprint(silo._start(), str(config.algorithm.proxy_model)) == tiny.final_sha256("first")
        path = tiny.store / ModelKeys("tiny").weights(tiny.final_sha256("first"))
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
        with pytest.raises(WeightsError, match="tampered with or damaged"):
            silo.check()

    def test_a_hospital_refuses_a_model_of_another_normalisation(self, tiny: TinyFederation) -> None:
        _, run = self.started(tiny, **{"algorithm.normalisation": "silo"})
        with pytest.raises(WeightsError, match="not expected"):
            open_silo(load_silo(tiny.folder / "brno.yaml"), run.store, "next").check()

    def test_a_hospital_refuses_other_weights_than_the_frozen_config_names(self, tiny: TinyFederation) -> None:
        config = tiny.load().override(start={"model": "champion", "sha256": tiny.final_sha256("first")})
        run = Run(open_store(str(tiny.store)), "next")
        run.freeze(config.to_yaml())
        other = find_start(config, StartConfig(version="2"), run.store)
        run.settle(StartedFrom(weights=other.weights, model="tiny", version="2", run="second", carry_over=True))
        with pytest.raises(ConfigError, match="names other weights than `start`"):
            open_silo(load_silo(tiny.folder / "brno.yaml"), run.store, "next").check()

    def test_a_damaged_state_of_the_earlier_run_is_named(self, tiny: TinyFederation) -> None:
        folder = StateFolder(tiny.folder / "state" / "aachen", "first")
        newest = max(folder.folder.glob("round-*.safetensors"))
        newest.write_bytes(b"hello")
        with pytest.raises(PermanentError, match=rf"{re.escape(newest.name)}: truncated"):
            folder.latest()

    def test_a_study_draws_its_own_starts(self, tiny: TinyFederation) -> None:
        with processes() as started:
            process = started.fedhelp("simulate", tiny.path, "--set", "start=champion", "--out", tiny.folder / "study")
            output, _ = process.communicate(timeout=240)
        assert process.returncode == 10 and "start: a study draws every start from its own seed" in output
