"""What people get wrong, one case a line: one sentence that names it, its own exit code, and nothing trained before it is found."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import pickle
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedhelp_cli.main import main as fedhelp
from fedhelp_components.check import __main__ as check_main
from fedhelp_components.evaluation import __main__ as evaluation_main
from fedhelp_components.soft_label_prefetch import __main__ as prefetch_main
from fedhelp_core.processes import exit_code_of
from fedhelp_core.weights.file import serialize_weights
from fedhelp_dispatch.process import ProcessDispatcher
from fedhelp_dispatch.request import request_for
from tests.s3_server import s3_server
from tests.tiny import DELETE, TinyFederation, wait_until, write_teacher

CONFIG, DATA, WEIGHTS, CONFLICT, DENIED, TEACHER, NOT_FOUND, FAILED = 10, 11, 12, 13, 14, 15, 18, 19
STORE, FULL, LOCKED = 30, 32, 33
NOBODY = "http://127.0.0.1:9"  # the discard port: connections are refused


@pytest.fixture(scope="module", autouse=True)
def surroundings() -> Iterator[None]:
    """No credentials and servers but ours; signal handlers that the commands set are undone."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "silo")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def guarded_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server that knows nobody."""
    with s3_server(tmp_path_factory.mktemp("s3") / "server.log", INITIAL_NO_AUTH_ACTION_COUNT="0") as endpoint:
        yield endpoint


@dataclass
class Scene:
    """A tiny federation in which something is made wrong, and ways to run into it. Each way gives exit code and output."""

    make: Callable[..., TinyFederation]
    tmp: Path
    request: pytest.FixtureRequest

    def check(self, tiny: TinyFederation, *arguments: str) -> tuple[int, str]:
        """`fedhelp check`."""
        return self.command("check", str(tiny.path), *arguments)

    def command(self, *arguments: str) -> tuple[int, str]:
        """Any `fedhelp` command."""
        result = CliRunner().invoke(fedhelp, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    def component(self, function: Callable[[], object]) -> tuple[int, str]:
        """A component's own function, ended as its `__main__` ends it."""
        self.request.getfixturevalue("capfd").readouterr()
        code = exit_code_of(function, program="component")
        return code, self.request.getfixturevalue("capfd").readouterr().err

    def started(self, tiny: TinyFederation, run_id: str = "r") -> TinyFederation:
        """`tiny` with its run checked: the start model is there."""
        check_main.run(federation=str(tiny.path), run_id=run_id, settings={})
        return tiny

    def prefetch(self, tiny: TinyFederation, run_id: str = "r") -> tuple[int, str]:
        """Check, then ask the teacher."""
        self.started(tiny, run_id)
        return self.component(lambda: prefetch_main.run(store=tiny.load().store.url, endpoint_url="", run_id=run_id))

    def worker(self, tiny: TinyFederation, silo: str = "brno") -> tuple[int, str]:
        """A silo's training worker for round 1."""
        federation = tiny.load()
        dispatcher = ProcessDispatcher(tiny.folder / "logs")
        try:
            (entry,) = (entry for entry in federation.silos if entry.name == silo)
            work = dispatcher.start(request_for(federation, "r", entry, "train", 1))
            outcome = wait_until(work.outcome, "the worker's end", 120)
            return int(outcome.exit_code), (tiny.folder / "logs" / f"{silo}.log").read_text(encoding="utf-8")
        finally:
            dispatcher.close()


Case = Callable[[Scene], tuple[int, str]]
CASES: dict[str, tuple[int, str, Case]] = {}


def case(code: int, message: str) -> Callable[[Case], Case]:
    """Add a case to the table: exit code, a regular expression for the whole of its error, and what leads to it."""

    def add(function: Case) -> Case:
        CASES[function.__name__] = (code, message, function)
        return function

    return add


def edited_csv(tiny: TinyFederation, edit: Callable[[list[dict[str, str]]], None], silo: str = "aachen") -> TinyFederation:
    """Give `silo` a split CSV of its own, changed by `edit`, and images of its own."""
    shutil.copytree(tiny.drawn / "data", tiny.folder / "data")
    path = tiny.folder / "data" / "train_test_split.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    edit(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    tiny.write_silo(silo, data__images="data/images", data__split_csv="data/train_test_split.csv")
    return tiny


# ---- federation.yaml

@case(CONFIG, r".*algorithm\.learning_rat: unknown field; did you mean '.*learning_rate'\?")
def misspelt_key(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(algorithm__learning_rat=0.1))


@case(CONFIG, r".*algorithm\.method: one of .* expected, got 'fedhepl'; did you mean 'fedhelp'\?")
def misspelt_method(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(algorithm__method="fedhepl"))


@case(CONFIG, r".*algorithm\.temperature: .*finite.*, got nan")
def nan_in_config(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(algorithm__temperature=float("nan")))


@case(CONFIG, r".*algorithm\.rounds: .*greater than or equal to 1, got 0")
def no_rounds(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(algorithm__rounds=0))


@case(CONFIG, r".*algorithm\.rank_top_k: must be below the number of classes \(8\), got 8")
def top_k_of_all_classes(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(algorithm__rank_top_k=8))


@case(CONFIG, r".*silos: name 'aachen' is used twice, expected each once")
def duplicate_silo(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(silos__1__name="aachen"))


@case(CONFIG, r".*silos\.0\.name: lower-case letters, digits and '-' expected.*, got 'Aachen/1'")
def illegal_silo_name(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(silos__0__name="Aachen/1"))


@case(CONFIG, r".*protocol\.min_silos: 4 silos asked for, but only 3 are listed under silos")
def more_silos_asked_for_than_listed(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(protocol__min_silos=4))


@case(CONFIG, r".*silos\.0\.dispatch.*silo_config: dispatch kind 'process' needs the path of the silo's silo\.yaml")
def no_silo_config(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(silos__0__dispatch__silo_config=DELETE))


@case(CONFIG, r".*public_set: method 'fedhelp' learns from soft labels.*")
def no_public_set(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(public_set=DELETE))


@case(CONFIG, r"algorithm\.method: 'local' has no federation to run.*")
def nothing_to_federate(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(algorithm__method="local"))


@case(FAILED, r"silo aachen: check failed: no training image \(data\.test_only in silo\.yaml\), so no part in a run; take it out of `silos`")
def silo_that_only_tests(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    image = next((tiny.drawn / "data" / "images").glob("*.jpg"))
    (tiny.folder / "list.json").write_text(f'{{"test": [{{"image": "{image.name}", "label": 0}}]}}', encoding="utf-8")
    tiny.write_silo("aachen", data={"layout": "datalist", "datalist": "list.json", "root": str(image.parent), "test_only": True})
    return scene.check(tiny)


@case(CONFIG, r".*federation\.yaml: store\.url: a folder, file:///folder or s3://bucket/prefix expected, got 'ftp://x/y'")
def store_of_no_kind(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(store__url="ftp://x/y"))


@case(CONFIG, r".*algorithm has nothing called 'round'.*|.*algorithm\.round: unknown field; did you mean 'rounds'\?")
def misspelt_change(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(), "--set", "algorithm.round=3")


@case(2, r".*is a directory.*")
def federation_file_is_a_folder(scene: Scene) -> tuple[int, str]:
    return scene.command("check", str(scene.tmp))


@case(CONFIG, r".*nowhere\.yaml: no such file; give the path of a YAML file.*")
def no_federation_file(scene: Scene) -> tuple[int, str]:
    return scene.command("check", str(scene.tmp / "nowhere.yaml"))


@case(CONFIG, r".*federation\.yaml: is not valid YAML at line 2, column \d+: .*")
def federation_file_is_no_yaml(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    tiny.path.write_text("name: tiny\nsilos: [\n", encoding="utf-8")
    code, output = scene.check(tiny)
    return code, re.sub(r"line 3, column", "line 2, column", output)  # libyaml and PyYAML count the end of the file differently


@case(CONFIG, r".*federation\.yaml: expected a mapping of fields, got list")
def federation_file_is_a_list(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    tiny.path.write_text("- tiny\n", encoding="utf-8")
    return scene.check(tiny)


@case(CONFIG, r"task 'noses': there are demos of melanoma, pneumonia, lung-segmentation, brain-segmentation, chest-findings, retinopathy,"
              r" chest-organs, brain-tumours; choose one of them")
def demo_of_no_task(scene: Scene) -> tuple[int, str]:
    return scene.command("simulate", "--task", "noses", "--demo", str(scene.tmp / "demo"))


@case(2, r"give either a FEDERATION file, or --demo FOLDER or --task TASK")
def a_file_and_a_task(scene: Scene) -> tuple[int, str]:
    return scene.command("simulate", str(scene.make().path), "--task", "pneumonia")


# ---- public images and teachers

@case(DATA, r"public_set\.images: .* holds no image .*; give the folder of public images, or set public_set\.layout")
def empty_public_folder(scene: Scene) -> tuple[int, str]:
    (scene.tmp / "empty").mkdir()
    return scene.check(scene.make(public_set__images=str(scene.tmp / "empty")))


@case(DATA, r"public_set\.images: .*/absent does not exist; give the public images, as public_set\.layout says")
def no_public_folder(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(public_set__images=str(scene.tmp / "absent")))


@case(TEACHER, r"teacher 'drawn' \(version 1\): expected 6 classes, got 5; correct `classes` in public_set\.teachers")
def teacher_of_other_class_count_than_declared(scene: Scene) -> tuple[int, str]:
    return scene.prefetch(scene.make(public_set__teachers__0__classes=6))


@case(CONFIG, r"teacher 'drawn' version '1': config says 4 classes, but it answered with 5 before.*")
def teacher_of_other_class_count_than_recorded(scene: Scene) -> tuple[int, str]:
    store = str(scene.tmp / "store")
    assert scene.prefetch(scene.make(store__url=store), "first")[0] == 0
    write_teacher(scene.tmp / "other-teacher", classes=4)
    tiny = scene.make(store__url=store, public_set__teachers__0__classes=4, public_set__teachers__0__uri=str(scene.tmp / "other-teacher"))
    scene.started(tiny, "second")
    return scene.component(lambda: prefetch_main.run(store=store, endpoint_url="", run_id="second"))


@case(TEACHER, r"teacher model .*/absent: cannot be loaded .*")
def no_teacher(scene: Scene) -> tuple[int, str]:
    return scene.prefetch(scene.make(public_set__teachers__0__uri=str(scene.tmp / "absent")))


# ---- a silo's file and images: the hub learns one sentence

@case(CONFIG, r"silo aachen: .*data\.centre: unknown field; did you mean 'center'\?")
def misspelt_key_of_a_silo(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    tiny.write_silo("aachen", data__centre=0)
    return scene.check(tiny)


@case(FAILED, r"silo brno: check failed: .* does the silo\.yaml it was given carry another name\?")
def file_of_another_silo(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(silos__1__dispatch__silo_config="aachen.yaml"))


@case(FAILED, r"silo brno: check failed: silo 'cologne' \(silo\.yaml\) is not in federation 'tiny'; its silos are aachen, brno, coimbra")
def file_of_a_stranger(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    tiny.write_silo("brno", name="cologne")
    return scene.check(tiny)


@case(CONFIG, r"silo coimbra: .*coimbra\.yaml: no such file; .*")
def no_silo_file(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    (tiny.folder / "coimbra.yaml").unlink()
    return scene.check(tiny)


@case(DATA, r"silo aachen: .*: at least 1 test image expected, got none")
def no_test_split(scene: Scene) -> tuple[int, str]:
    def only_training(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["fold"] = "train"

    return scene.check(edited_csv(scene.make(), only_training))


@case(DATA, r"silo aachen: .*/ISIC_absent\.jpg: no such image file; correct the list or the images folder")
def missing_image(scene: Scene) -> tuple[int, str]:
    return scene.check(edited_csv(scene.make(), lambda rows: rows[0].update(image="ISIC_absent")))


@case(DATA, r"silo aachen: .*ISIC_\d+\.jpg \(t\w+\) has label 9, expected 0 to 7 \(task\.classes\)")
def label_out_of_range(scene: Scene) -> tuple[int, str]:
    return scene.check(edited_csv(scene.make(), lambda rows: rows[0].update(target="9")))


@case(DATA, r"silo aachen: .*line 2: image should be a plain file name.*'\.\./secret'")
def image_outside_its_folder(scene: Scene) -> tuple[int, str]:
    return scene.check(edited_csv(scene.make(), lambda rows: rows[0].update(image="../secret")))


@case(DATA, r"silo aachen: .*ISIC_\d+\.jpg: cannot be read as an image .*; replace or remove it")
def truncated_image(scene: Scene) -> tuple[int, str]:
    tiny = edited_csv(scene.make(), lambda rows: None)
    image = next((tiny.folder / "data" / "images").glob("ISIC_0000000.jpg"))
    image.write_bytes(image.read_bytes()[:200])
    return scene.check(tiny)


@case(DATA, r"silo brno: .*no row has center 77 \(data\.center in silo\.yaml\); centers found: 0, 1, 2")
def unknown_center(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    tiny.write_silo("brno", data__center=77)
    return scene.check(tiny)


# ---- disks and buckets

@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@case(FULL, r".*/aachen/pictures\.html: no space left.*")
def full_disk_of_a_silo(scene: Scene) -> tuple[int, str]:
    tiny = scene.make(silos__0__dispatch__retries=0)
    with mounted(tiny.folder / "state" / "aachen", "size=8k"):
        return scene.check(tiny)


@case(FULL, r".*: no space left in the store .*; free some or enlarge the volume, then run again")
def full_disk_of_the_store(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    with mounted(tiny.store, "size=8k"):
        (tiny.store / "filler").write_bytes(bytes(8192))
        return scene.check(tiny)


@case(DENIED, r".*: the store refuses access \(Read-only file system\); give this user read and write permission on the folder")
def read_only_store(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    with mounted(tiny.store, "ro"):
        return scene.check(tiny)


@case(DENIED, r".*/aachen/pictures\.html: not writable \(Read-only file system\); mount the state volume read-write for this user")
def read_only_state(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    with mounted(tiny.folder / "state" / "aachen", "ro"):
        return scene.check(tiny)


@case(CONFIG, r"public_set\.teachers\.0\.uri: teacher 'drawn' is to be a folder with an MLflow model, and .*/gone is none; correct the path, .*")
def teacher_that_is_gone(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(public_set__teachers__0__uri="gone"))


@case(CONFIG, r"algorithm\.large_silos: no silo is small, .* teachers would be asked for nothing; lower it, or choose method fedhelp-no-api")
def nobody_who_learns_from_teachers(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(algorithm__large_silos=3))


@case(CONFIG, r"store\.url: a folder expected, but .*/a-file is a file")
def store_that_is_a_file(scene: Scene) -> tuple[int, str]:
    (scene.tmp / "a-file").touch()
    return scene.check(scene.make(store__url=str(scene.tmp / "a-file"), tracking__uri=f"sqlite:///{scene.tmp}/m.db"))


@case(STORE, r"s3://federation/x/.* at http://127\.0\.0\.1:9: not reached .*; check the endpoint and the network, then try again")
def unreachable_bucket(scene: Scene) -> tuple[int, str]:
    return scene.check(scene.make(store__url="s3://federation/x", store__endpoint_url=NOBODY, tracking__uri=f"sqlite:///{scene.tmp}/m.db"))


@case(DENIED, r"s3://federation/x/.* at http://.*: access denied \(.*\); check the credentials and their rights on this prefix.*")
def wrong_credentials(scene: Scene) -> tuple[int, str]:
    endpoint = scene.request.getfixturevalue("guarded_s3")
    return scene.check(scene.make(store__url="s3://federation/x", store__endpoint_url=endpoint, tracking__uri=f"sqlite:///{scene.tmp}/m.db"))


# ---- runs

@case(CONFIG, r"run id 'My Run': 1 to 63 lower-case letters, digits and '-' expected.*")
def illegal_run_id(scene: Scene) -> tuple[int, str]:
    tiny = scene.make()
    return scene.component(lambda: check_main.run(federation=str(tiny.path), run_id="My Run", settings={}))


@case(CONFLICT, r"run 'r' was started with another config: algorithm\.rounds: 2 expected, got 3; .*")
def run_id_of_another_config(scene: Scene) -> tuple[int, str]:
    tiny = scene.started(scene.make())
    return scene.component(lambda: check_main.run(federation=str(tiny.path), run_id="r", settings={"algorithm.rounds": 3}))


@case(NOT_FOUND, r"no run 'absent' in .*; start it, or check the run id and the store's url")
def no_such_run(scene: Scene) -> tuple[int, str]:
    return scene.component(lambda: evaluation_main.run(store=str(scene.tmp), endpoint_url="", run_id="absent"))


@case(NOT_FOUND, r"run 'r': round 2 is not committed yet; let aggregation \(or federation\) finish first")
def evaluation_before_training(scene: Scene) -> tuple[int, str]:
    tiny = scene.started(scene.make())
    return scene.component(lambda: evaluation_main.run(store=str(tiny.store), endpoint_url="", run_id="r"))


# ---- weights, found by the silo before it trains

def with_start_model(scene: Scene, body: Callable[[bytes], bytes]) -> tuple[int, str]:
    """What a silo says to a start model whose file was replaced."""
    tiny = scene.started(scene.make(algorithm__method="fedavg", public_set=DELETE))
    [path] = (tiny.store / "runs" / "r" / "rounds" / "1").glob("global-*.safetensors")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(body(content))
    return scene.worker(tiny)


@case(WEIGHTS, r".*: tampered with or damaged: sha256 \w{64} expected, got \w{64}")
def tampered_weights(scene: Scene) -> tuple[int, str]:
    return with_start_model(scene, lambda body: body[:-1] + bytes([body[-1] ^ 1]))


@case(WEIGHTS, r".*: truncated: \d+ bytes, the header announces \d+")
def truncated_weights(scene: Scene) -> tuple[int, str]:
    return with_start_model(scene, lambda body: body[:-100])


@case(WEIGHTS, r".*: is a pickle .*: pickles run code and are never opened")
def pickled_weights(scene: Scene) -> tuple[int, str]:
    return with_start_model(scene, lambda _: pickle.dumps({"w": 1.0}, protocol=4))


@case(WEIGHTS, r".*: weights of architecture 'resnet14', 'resnet8' expected")
def weights_of_another_architecture(scene: Scene) -> tuple[int, str]:
    return with_start_model(scene, lambda _: serialize_weights({"w": np.zeros(3, np.float32)}, "resnet14"))


@case(WEIGHTS, r".*: format version 2, this FedHelp reads up to 1; upgrade it, or downgrade the writer")
def weights_of_a_future_version(scene: Scene) -> tuple[int, str]:
    return with_start_model(scene, lambda body: body.replace(b'"fedhelp_format":"1"', b'"fedhelp_format":"2"'))


@case(LOCKED, r".*: another process is working on this silo's state; wait for it to end, or stop it, and try again")
def state_in_use(scene: Scene) -> tuple[int, str]:
    tiny = scene.started(scene.make(algorithm__method="fedavg", public_set=DELETE))
    folder = tiny.folder / "state" / "brno" / "runs" / "r"
    folder.mkdir(parents=True)  # what the first to work there does
    with (folder / "lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return scene.worker(tiny)


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_in_one_sentence(
    name: str, make_tiny: Callable[..., TinyFederation], tmp_path: Path, request: pytest.FixtureRequest,
) -> None:
    code, message, function = CASES[name]
    found, output = function(Scene(make_tiny, tmp_path, request))
    errors = [line.split("rror: ", 1)[1] for line in output.splitlines() if re.search(r"\b[eE]rror: ", line)]
    assert found == code, output
    assert len(errors) == 1, output
    assert re.fullmatch(message, errors[0]), errors[0]
    assert "Traceback" not in output
    assert list(tmp_path.rglob("updates/*")) == []  # nothing was trained


def test_there_are_at_least_25_cases() -> None:
    assert len(CASES) >= 25


def test_store_and_tracking_are_both_said_to_be_wrong(
    make_tiny: Callable[..., TinyFederation], tmp_path: Path, request: pytest.FixtureRequest,
) -> None:
    scene = Scene(make_tiny, tmp_path, request)
    code, output = scene.check(scene.make(store__url="s3://federation/x", store__endpoint_url=NOBODY))
    assert code == CONFIG
    assert "error: tracking.uri: missing, and store 's3://federation/x' is no folder where MLflow could keep SQLite; " in output
    assert "error: s3://federation/x/" in output and "not reached" in output
