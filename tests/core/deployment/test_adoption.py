"""From the hub's record to a model in use: everything verified, joined with what is this hospital's, adopted by its own rule; nothing leaves."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from fedhelp_cli.main import main
from fedhelp_core.algorithm.local_update import CPU, SiloState
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.silo import SiloConfig, load_silo
from fedhelp_core.deployment.adopted import ModelFolder
from fedhelp_core.deployment.adoption import adopt, chosen_fetched, fetch
from fedhelp_core.deployment.scorer import ClassAnswer, scorer_in
from fedhelp_core.errors import StorageFull
from fedhelp_core.models.build import normalisation_keys
from fedhelp_core.protocol.documents import dump
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.silo.state import StateFolder
from fedhelp_core.weights.file import read_weights
from tests.core.deployment.hub import MELANOMA, Hub
from tests.core.deployment.models import files_of_at_most, tree_of
from tests.tiny import Processes, TinyFederation, ended

pytestmark = pytest.mark.slow  # decodes images

CONFIG, DATA, WEIGHTS, NOT_FOUND, STORE, FULL, BUSY, KEPT = 10, 11, 12, 18, 30, 32, 33, 40


class Ward:
    """The hospital `aachen` of the tiny federation, and a hub's store beside it."""

    def __init__(self, tiny: TinyFederation, **algorithm: Any) -> None:
        self.tiny = tiny
        self.hub = Hub(tiny.folder / "hub", **algorithm)
        self.configure()

    def configure(self, **adoption: Any) -> None:
        """silo.yaml's section."""
        self.tiny.write_silo("aachen", adoption={"store": "hub", **adoption})

    @property
    def config(self) -> SiloConfig:
        return load_silo(self.tiny.folder / "aachen.yaml")

    @property
    def models(self) -> ModelFolder:
        return ModelFolder(self.config.state, "chest")

    def typed(self, command: str, *words: str) -> Result:
        """`fedhelp model ...`."""
        return CliRunner().invoke(main, ["model", command, "--silo", str(self.tiny.folder / "aachen.yaml"), *words])

    def said(self, command: str, *words: str) -> str:
        done = self.typed(command, *words)
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture
def ward(make_tiny: Callable[..., TinyFederation]) -> Ward:
    return Ward(make_tiny())


def refused(done: Result, code: int, *said: str) -> None:
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output and "crash-" not in done.output
    for part in said:
        assert part in done.output, done.output


def test_the_champion_is_fetched_adopted_and_gone_back_from_and_everything_is_listed(ward: Ward) -> None:
    ward.hub.promote("3", seed=1)
    assert "no model was fetched yet" in ward.said("list")
    assert "chest: version 3 fetched and verified (record 1 of 1, promoted, run a-run)" in ward.said("fetch")
    first = ward.said("adopt")
    assert "on 8 test images of this hospital:" in first and "do not decide: " in first
    assert "in use now: chest version 3 (the shared model); no model was in use" in first
    assert "is in use already; nothing was changed" in ward.said("adopt")
    ward.hub.promote("4", seed=2)
    ward.said("fetch")
    ward.configure(tolerance=1.0)
    second = ward.said("adopt")
    assert "in use now: chest version 4" in second and "version 3 has" in second and "go back with: fedhelp model rollback" in second
    assert "in use again: chest version 3" in ward.said("rollback", "--reason", "too many alarms")
    assert ward.models.in_use().contract.version == "3"
    listed = ward.said("list")
    for part in ("in use", "before", "fetched", "rolled-back", "too many alarms", "promoted by the hub", str(ward.config.state / "adoptions.jsonl")):
        assert part in listed, listed


def test_a_model_that_is_worse_by_more_than_the_tolerance_stays_out_unless_somebody_says_why(ward: Ward) -> None:
    scores = {}
    for version, seed in (("1", 1), ("2", 2), ("3", 3), ("4", 4), ("5", 5), ("6", 6)):
        ward.hub.promote(version, seed=seed)
        ward.said("fetch")
        ward.configure(tolerance=1.0)
        ward.said("adopt")
        scores[version] = ward.models.in_use().contract.scores["balanced_accuracy"]
    best, worst = max(scores, key=lambda version: scores[version]), min(scores, key=lambda version: scores[version])
    assert scores[best] > scores[worst]
    ward.hub.promote("7", seed=int(best))
    ward.said("fetch")
    ward.said("adopt")
    ward.hub.promote("8", seed=int(worst))
    ward.said("fetch")
    ward.configure(tolerance=0.0)
    assert "would not be adopted" in ward.said("adopt", "--dry-run")
    before = tree_of(ward.models.folder / "adopted")
    refused(ward.typed("adopt"), KEPT, "chest version 8 is not adopted: balanced accuracy", "version 7 stays in use", "--force --reason TEXT")
    assert tree_of(ward.models.folder / "adopted") == before
    refused(ward.typed("adopt", "--force"), 2, "--force and --reason TEXT belong together")
    refused(ward.typed("adopt", "--reason", "x"), 2, "belong together")
    assert "in use now: chest version 8" in ward.said("adopt", "--force", "--reason", "version 7 is withdrawn")
    *_, kept, forced = ward.models.ledger.decisions()
    assert (kept.action, forced.action) == ("kept", "forced")
    assert forced.reason.startswith("version 7 is withdrawn (balanced accuracy") and forced.new["balanced_accuracy"] == scores[worst]


def test_own_batch_norms_are_joined_where_they_stay_at_home(make_tiny: Callable[..., TinyFederation]) -> None:
    ward = Ward(make_tiny(), normalisation="silo")
    record = ward.hub.promote("3")
    own = {f"normalisation/{name}": torch.from_numpy(np.array(value)) + 1 for name, value in ward.hub.norms(9).items()}
    StateFolder(ward.config.state, record.run).save(SiloState(round=2, tensors=own))
    ward.said("fetch")
    ward.said("adopt")
    adopted = ward.models.in_use()
    weights = read_weights(adopted.weights, expected=None, max_bytes=2**30, sha256=adopted.contract.weights_sha256)
    assert adopted.contract.norms == "own" and not adopted.contract.notes
    for name, tensor in own.items():
        assert np.array_equal(weights[name.removeprefix("normalisation/")], tensor.numpy())
    assert all(np.array_equal(weights[name], value) for name, value in ward.hub.weights(1).items())


@pytest.mark.parametrize("norms", [True, False])
def test_a_hospital_that_took_no_part_gets_batch_norms_with_the_statistics_of_its_own_images(
    norms: bool, make_tiny: Callable[..., TinyFederation],
) -> None:
    ward = Ward(make_tiny(), normalisation="silo")
    ward.hub.promote("3", norms=norms)
    ward.said("fetch")
    assert "batch norms have the statistics of this hospital's training images" in ward.said("adopt")
    adopted = ward.models.in_use()
    weights = read_weights(adopted.weights, expected=None, max_bytes=2**30, sha256=None)
    model = ward.hub.objective.build("resnet8")
    means = [weights[name] for name in normalisation_keys(model) if name.endswith("running_mean")]
    assert adopted.contract.norms == "recomputed" and any(np.abs(mean).max() > 0.01 for mean in means)


def test_a_large_hospitals_own_large_model_is_adopted_and_exported(make_tiny: Callable[..., TinyFederation], tmp_path: Path) -> None:
    ward = Ward(make_tiny())
    record = ward.hub.promote("3")
    large = ward.hub.objective.build("resnet14", torch.Generator().manual_seed(5)).state_dict()
    StateFolder(ward.config.state, record.run).save(SiloState(round=2, tensors={f"large/{name}": value for name, value in large.items()}))
    ward.said("fetch")
    assert "this hospital's large model" in ward.said("adopt")
    assert "weights.safetensors (network resnet14" in ward.said("export", "--out", str(tmp_path / "mine"))
    weights = read_weights(tmp_path / "mine" / "weights.safetensors", expected=None, max_bytes=2**30, sha256=None)
    assert all(np.array_equal(weights[name], value.numpy()) for name, value in large.items())
    assert json.loads((tmp_path / "mine" / "contract.json").read_text())["model"] == "large"
    refused(ward.typed("export", "--out", str(tmp_path / "mine")), CONFIG, "is there already, and is not overwritten")


@pytest.mark.timeout(300)
def test_an_exported_program_answers_as_the_model_does_and_needs_nothing_of_fedhelp(ward: Ward, tmp_path: Path) -> None:
    ward.hub.promote("3")
    ward.said("fetch")
    ward.said("adopt")
    assert "torch.export.load(PATH).module()(images)" in ward.said("export", "--out", str(tmp_path / "model.pt2"), "--form", "program")
    images = np.random.default_rng(1).integers(0, 256, (3, 3, 16, 16), np.uint8)
    adopted = ward.models.in_use()
    answers = scorer_in(adopted.contract, adopted.weights, ward.config.adoption, CPU).answers(images)
    program = torch.export.load(tmp_path / "model.pt2").module()
    found = program(torch.from_numpy(images).float()).detach().numpy()
    decided = [answer.decided for answer in answers if isinstance(answer, ClassAnswer)]
    assert found.argmax(axis=1).tolist() == decided
    assert found.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)


# ---- what a store may do to a hospital


def test_an_altered_record_a_gap_and_a_foreign_record_are_refused(ward: Ward) -> None:
    records = [ward.hub.promote(version, seed=1) for version in ("3", "4", "5")]
    keys = ModelKeys("chest")
    middle = ward.hub.store.get(keys.record(2))
    ward.hub.rewrite(records[1], reason="another one")
    refused(ward.typed("fetch"), CONFIG, "models/chest/records/000003.json: previous_sha256", "this record or the one before it was altered")
    ward.hub.store.delete(keys.record(2))
    refused(ward.typed("fetch"), CONFIG, "the record of model 'chest' has a gap, or something foreign is in it")
    ward.hub.store.put(keys.record(2), ward.hub.store.get(keys.record(1)))
    refused(ward.typed("fetch"), CONFIG, "number 2 of model 'chest' expected, got number 1")
    ward.hub.store.put(keys.record(2), b"{}")
    refused(ward.typed("fetch"), CONFIG, "models/chest/records/000002.json")
    ward.hub.store.put(keys.record(2), middle)
    ward.said("fetch")
    assert not list(ward.models.folder.glob("fetched/.*"))


def test_an_older_record_that_is_played_back_is_refused_and_the_model_in_use_stays(ward: Ward) -> None:
    ward.hub.promote("3")
    second = ward.hub.promote("4", seed=2)
    ward.said("fetch")
    ward.said("adopt")
    ward.hub.store.delete(ModelKeys("chest").record(2))
    refused(ward.typed("fetch"), CONFIG, "the record ends at number 1, but number 2 was seen here before")
    ward.hub.rewrite(second, reason="written anew")
    refused(ward.typed("fetch"), CONFIG, "was seen here before", "the record was written anew: ask the hub")
    assert ward.models.in_use().contract.version == "4"


def test_weights_that_are_not_the_records_are_refused_and_nothing_is_kept_of_them(ward: Ward) -> None:
    record = ward.hub.promote("3")
    key = ModelKeys("chest").weights(record.weights.sha256)
    right = ward.hub.store.get(key)
    for wrong in (right[:-4] + b"\0\0\0\1", right[:-100], b"PK\x03\x04" + right[4:], b""):
        ward.hub.store.put(key, wrong)
        refused(ward.typed("fetch"), WEIGHTS)
        assert not ward.models.fetched()
    ward.hub.store.delete(key)
    refused(ward.typed("fetch"), NOT_FOUND, "no such object")
    ward.hub.store.put(key, right)
    ward.said("fetch")


def test_weights_that_were_altered_after_they_were_fetched_are_not_adopted(ward: Ward) -> None:
    ward.hub.promote("3")
    ward.said("fetch")
    [folder] = ward.models.fetched()
    [path] = folder.glob("*.safetensors")
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    refused(ward.typed("adopt"), WEIGHTS, "tampered with or damaged")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "version": "9"}))
    refused(ward.typed("adopt"), CONFIG, "was altered since it was fetched; fetch the model again")
    (folder / "fetched.json").write_text("{")
    refused(ward.typed("adopt"), CONFIG, "is damaged", "fetch the model again")
    ward.said("fetch")
    ward.said("adopt")


def test_a_model_of_another_task_is_refused_by_data_and_by_the_model_in_use(ward: Ward) -> None:
    ward.hub.promote("3")
    ward.said("fetch")
    ward.said("adopt")
    other = Hub(ward.tiny.folder / "hub", MELANOMA.model_copy(update={"classes": ("x", *MELANOMA.classes[1:])}))
    other.promote("4")
    ward.said("fetch")
    refused(ward.typed("adopt"), CONFIG, "is of task melanoma (x, nevus", "a model of another task is adopted under another name")
    lungs = Hub(ward.tiny.folder / "hub", MELANOMA.model_validate({"name": "lung-segmentation", "image_size": 16}), proxy_model="unet2d-tiny",
                large_model="unet2d-tiny")
    lungs.promote("5")
    ward.said("fetch")
    refused(ward.typed("adopt"), CONFIG, "data.layout 'fed-isic2019' has no masks, which task lung-segmentation needs")
    assert ward.models.in_use().contract.version == "3"


def test_a_network_that_the_weights_do_not_fit_is_refused(ward: Ward) -> None:
    record = ward.hub.promote("3")
    ward.hub.rewrite(record, algorithm=record.algorithm.model_copy(update={"proxy_model": ModelConfig(network="resnet20")}))
    ward.said("fetch")
    refused(ward.typed("adopt"), WEIGHTS, "do not fit model 'resnet20'")


def test_images_that_the_hub_prepares_otherwise_are_not_adopted(ward: Ward) -> None:
    record = ward.hub.promote("3")
    ward.hub.rewrite(record, preprocessing="grey8, another way")
    refused(ward.typed("fetch"), WEIGHTS, "its images are prepared as 'grey8, another way', this software prepares them as 'rgb8")


def test_what_was_never_promoted_or_fetched_is_not_found(ward: Ward) -> None:
    refused(ward.typed("fetch"), NOT_FOUND, "the store has no record of a model: the hub promotes one first")
    refused(ward.typed("adopt"), NOT_FOUND, "this hospital has no model yet")
    refused(ward.typed("fetch", "--name", "chest"), NOT_FOUND, "the store has no record of it")
    ward.hub.promote("3")
    refused(ward.typed("fetch", "--version", "9"), NOT_FOUND, "version '9' was never champion; the record has 3")
    refused(ward.typed("fetch", "--name", "../x"), CONFIG, "registered model '../x'")
    ward.said("fetch")
    refused(ward.typed("adopt", "--version", "9"), NOT_FOUND, "version 9 of model 'chest' was not fetched yet")
    refused(ward.typed("rollback"), NOT_FOUND, "no model is in use")
    refused(ward.typed("export", "--out", str(ward.tiny.folder / "x")), NOT_FOUND, "no model is in use")


def test_a_full_disk_amid_fetching_or_adopting_changes_nothing(ward: Ward) -> None:
    ward.hub.promote("3")
    ward.said("fetch")
    ward.said("adopt")
    ward.hub.promote("4", seed=2)
    before = tree_of(ward.config.state)
    with files_of_at_most(20_000):
        refused(ward.typed("fetch"), FULL, "no space left")
    newest = {"models/chest/newest.json"}
    assert {path: sha for path, sha in tree_of(ward.config.state).items() if path not in newest} == {
        path: sha for path, sha in before.items() if path not in newest}
    ward.said("fetch")
    ward.configure(tolerance=1.0)
    adopted = tree_of(ward.models.folder / "adopted")
    fetched = chosen_fetched(ward.models, None)
    with files_of_at_most(300_000 - 1), pytest.raises(StorageFull):
        adopt(ward.config, ward.models, fetched, CPU)
    assert tree_of(ward.models.folder / "adopted") == adopted and ward.models.in_use().contract.version == "3"
    ward.said("adopt")


def test_an_adoption_while_another_goes_on_is_one_sentence(ward: Ward) -> None:
    ward.hub.promote("3")
    ward.said("fetch")
    with ward.models.locked():
        for command in ("adopt", "fetch"):
            refused(ward.typed(command), BUSY, "another process fetches or adopts this model now; wait for it to end")
    ward.said("adopt")


# ---- what leaves, and life without the hub


def test_nothing_leaves_unless_the_hospital_announces_and_then_one_sentence_once(ward: Ward) -> None:
    ward.hub.promote("3")
    before = tree_of(ward.tiny.folder / "hub")
    ward.said("fetch")
    ward.said("adopt")
    assert tree_of(ward.tiny.folder / "hub") == before and not (ward.config.state / "egress.jsonl").exists()
    ward.hub.promote("4", seed=2)
    ward.configure(tolerance=1.0, announce=True)
    ward.said("fetch")
    before = tree_of(ward.tiny.folder / "hub")
    assert "the store was told: adopted version 4" in ward.said("adopt")
    after = tree_of(ward.tiny.folder / "hub")
    [new] = after.keys() - before.keys()
    assert new == "models/chest/adoptions/aachen/4.txt" == ModelKeys("chest").adoption("aachen", "4")
    assert (ward.tiny.folder / "hub" / new).read_text() == "adopted version 4\n"
    [entry] = [json.loads(line) for line in (ward.config.state / "egress.jsonl").read_text().splitlines()]
    assert (entry["object"], entry["bytes"]) == (new, 18)


def test_without_the_hub_everything_goes_on_but_fetching(ward: Ward) -> None:
    ward.hub.promote("3")
    ward.said("fetch")
    (ward.tiny.folder / "hub").rename(ward.tiny.folder / "gone")
    (ward.tiny.folder / "hub").write_text("not a folder any more")
    ward.configure(announce=True)
    assert "in use now: chest version 3" in (told := ward.said("adopt")) and "the store could not be told" in told
    assert ward.models.in_use().contract.version == "3"
    listed = ward.said("list")
    assert "in use" in listed
    done = ward.typed("fetch")
    assert done.exit_code != 0 and "Traceback" not in done.output


def test_a_store_has_to_be_named_somewhere(ward: Ward) -> None:
    ward.configure(store=None)
    refused(ward.typed("fetch"), CONFIG, "no store is named; give --store, or adoption.store in silo.yaml")
    ward.hub.promote("3")
    ward.said("fetch", "--store", str(ward.tiny.folder / "hub"))


def test_a_card_that_was_altered_is_refused_and_the_right_one_lies_beside_the_model(ward: Ward) -> None:
    card = b"# Chest\n"
    sha256 = hashlib.sha256(card).hexdigest()
    record = ward.hub.promote("3")
    ward.hub.rewrite(record, card_sha256=sha256)
    ward.hub.store.put(ModelKeys("chest").card(sha256, "md"), b"# Forged\n")
    refused(ward.typed("fetch"), CONFIG, "is not the model card of the record")
    ward.hub.store.put(ModelKeys("chest").card(sha256, "md"), card)
    ward.said("fetch")
    ward.said("adopt")
    assert ward.models.in_use().card.read_bytes() == card


def test_what_was_fetched_is_fetched_once_and_only_the_last_two_are_kept(ward: Ward) -> None:
    for version in "3456":
        ward.hub.promote(version, seed=int(version))
        fetched, chain = fetch(ward.hub.store, ward.models)
        assert fetched.record == chain.records[-1]
        assert dump(fetched.record) == ward.hub.store.get(ModelKeys("chest").record(int(version) - 2))
    assert [path.name for path in ward.models.fetched()] == ["000003", "000004"]
    before = [path.stat().st_ino for path in ward.models.fetched()]
    fetch(ward.hub.store, ward.models)
    assert [path.stat().st_ino for path in ward.models.fetched()] == before


_KILLED = """
import os, sys
from fedhelp_cli.main import main

left, real = int(sys.argv[1]), os.replace

def replace(*paths):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    real(*paths)

os.replace = replace
main(["model", "adopt", "--silo", sys.argv[2]])
"""


@pytest.mark.timeout(300)
def test_an_adoption_that_is_killed_before_any_of_its_renames_leaves_one_whole_model_in_use_and_goes_on(
    ward: Ward, processes: Processes, tmp_path: Path,
) -> None:
    ward.hub.promote("3")
    ward.said("fetch")
    ward.said("adopt")
    ward.hub.promote("4", seed=2)
    ward.configure(tolerance=1.0)
    ward.said("fetch")
    (tmp_path / "killed.py").write_text(_KILLED)
    code, output, renames = -9, "", 0
    while code == -9:
        code, output = ended(processes.start(sys.executable, tmp_path / "killed.py", renames, ward.tiny.folder / "aachen.yaml"))
        renames += 1
        adopted = ward.models.in_use()
        assert adopted.contract.version == ("3" if code else "4"), output
        scorer_in(adopted.contract, adopted.weights, ward.config.adoption, CPU)
        ward.models.ledger.decisions()
    assert code == 0 and renames > 2, output
