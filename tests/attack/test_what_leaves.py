"""Names of files and values of lists stay in the hospital, whatever is wrong with them.

Each case plants a canary in a name or a value, so that a reader says it in its error; then everything that a hub can read is searched for it.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fedhelp_components.check import __main__ as check_main
from fedhelp_core.config.silo import load_silo
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.crashes import as_error
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.errors import (
    AccessDenied,
    ConfigError,
    DataError,
    FedHelpError,
    NotFound,
    PermanentError,
    TeacherError,
    WeightsError,
    public_half,
)
from fedhelp_core.silo.disclosure import LOG, Disclosure
from fedhelp_dispatch import worker
from tests.tiny import Processes, TinyFederation, succeeded

pytestmark = [pytest.mark.attack, pytest.mark.slow]
CANARY = "Mueller-Petra-1961"
Make = Callable[..., TinyFederation]


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def own_data(tiny: TinyFederation) -> Path:
    """A copy of the drawn data for silo brno alone; its CSV."""
    shutil.copytree(tiny.drawn / "data", tiny.folder / "data")
    tiny.write_silo("brno", data__images="data/images", data__split_csv="data/train_test_split.csv")
    return tiny.folder / "data" / "train_test_split.csv"


def renamed(tiny: TinyFederation, make: Callable[[Path], None]) -> None:
    """The first picture of brno gets the canary's name, in the list too; `make` makes the file anew."""
    csv = own_data(tiny)
    lines = csv.read_text(encoding="utf-8").splitlines()
    columns = lines[0].split(",")
    row = next(i for i, line in enumerate(lines) if i and line.split(",")[columns.index("center")] == "1")
    cells = lines[row].split(",")
    old, cells[columns.index("image")] = cells[columns.index("image")], CANARY
    lines[row] = ",".join(cells)
    csv.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tiny.folder / "data" / "images" / f"{old}.jpg").unlink()
    make(tiny.folder / "data" / "images" / f"{CANARY}.jpg")


def no_picture(tiny: TinyFederation) -> None:
    renamed(tiny, lambda path: None)


def broken_picture(tiny: TinyFederation) -> None:
    renamed(tiny, lambda path: path.write_bytes(b"\xff\xd8\xff" + CANARY.encode() * 9) and None)


def print_colours(tiny: TinyFederation) -> None:
    renamed(tiny, lambda path: Image.new("CMYK", (9, 9)).save(path))


def a_folder_for_a_picture(tiny: TinyFederation) -> None:
    renamed(tiny, lambda path: path.mkdir())


def value_in_a_csv(tiny: TinyFederation) -> None:
    csv = own_data(tiny)
    lines = csv.read_text(encoding="utf-8").splitlines()
    label = lines[0].split(",").index("target")
    rows = [[CANARY if place == label else cell for place, cell in enumerate(line.split(","))] for line in lines[1:]]
    csv.write_text("\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")


def column_of_a_csv(tiny: TinyFederation) -> None:
    own_data(tiny).write_text(f"{CANARY},b\n1,2\n", encoding="utf-8")


def csv_that_is_none(tiny: TinyFederation) -> None:
    own_data(tiny).write_text(f'image,center,target,fold\n"{CANARY}', encoding="utf-8")


def datalist(tiny: TinyFederation, body: str) -> None:
    (tiny.folder / f"{CANARY}.json").write_text(body, encoding="utf-8")
    tiny.write_silo("brno", data={"layout": "datalist", "datalist": f"{CANARY}.json"})


def datalist_of_no_json(tiny: TinyFederation) -> None:
    datalist(tiny, f'{{"training": [{{"image": "{CANARY}"')


def datalist_of_strange_rows(tiny: TinyFederation) -> None:
    datalist(tiny, json.dumps({"training": [{"image": f"../{CANARY}", "label": 1}, {"image": CANARY, "label": CANARY}], CANARY: [], "test": CANARY}))


def datalist_of_missing_files(tiny: TinyFederation) -> None:
    datalist(tiny, json.dumps({"training": [{"image": f"{CANARY}{i}.jpg", "label": 0} for i in range(3)], "test": [{"image": CANARY, "label": 0}]}))


def unknown_field(tiny: TinyFederation) -> None:
    tiny.write_silo("brno", **{f"data__{CANARY}": CANARY})


def value_of_a_field(tiny: TinyFederation) -> None:
    tiny.write_silo("brno", data__center=CANARY)


def layout_that_is_none(tiny: TinyFederation) -> None:
    tiny.write_silo("brno", data__layout=CANARY)


def folder_that_is_none(tiny: TinyFederation) -> None:
    tiny.write_silo("brno", data__images=f"/{CANARY}/images")


def silo_yaml_that_is_none(tiny: TinyFederation) -> None:
    (tiny.folder / "brno.yaml").write_text(f"name: brno\n{CANARY}: [\n", encoding="utf-8")


def state_that_cannot_be_written(tiny: TinyFederation) -> None:
    (tiny.folder / CANARY).write_text("", encoding="utf-8")
    tiny.write_silo("brno", state=f"{CANARY}/state")


CASES = [
    no_picture, broken_picture, print_colours, a_folder_for_a_picture, value_in_a_csv, column_of_a_csv, csv_that_is_none, datalist_of_no_json,
    datalist_of_strange_rows, datalist_of_missing_files, unknown_field, value_of_a_field, layout_that_is_none, folder_that_is_none,
    silo_yaml_that_is_none, state_that_cannot_be_written]


def leaks(folder: Path, *, other_than: tuple[str, ...] = ()) -> list[str]:
    """Files below `folder` that hold the canary, or are called so."""
    found = [path for path in folder.rglob("*") if path.is_file() and not any(part in other_than for part in path.relative_to(folder).parts)]
    return [str(path) for path in found if CANARY.encode() in path.read_bytes() or CANARY in path.name]


@pytest.mark.parametrize("plant", CASES, ids=lambda plant: plant.__name__)
def test_a_worker_for_a_remote_hub_keeps_names_and_values_to_its_own_log(
    make_tiny: Make, capfd: pytest.CaptureFixture[str], plant: Callable[[TinyFederation], None],
) -> None:
    tiny = make_tiny(public_set=None, algorithm__method="fedavg")
    tiny.run("r").freeze(tiny.load().to_yaml())
    plant(tiny)
    code = worker.main(["check", "--run", "r", "--store", str(tiny.store), "--silo-config", str(tiny.folder / "brno.yaml")])
    said = "".join(capfd.readouterr())
    assert code in (10, 11, 14, 18), said
    assert CANARY not in said and "Traceback" not in said
    assert len([line for line in said.splitlines() if ": error: " in line]) == 1 and said.isascii()
    assert leaks(tiny.store) == []
    log = tiny.folder / "state" / "brno" / LOG
    if "state's folder" in said:
        assert CANARY in log.read_text(encoding="utf-8")


def test_what_libraries_print_and_tracebacks_stay_in_the_hospital(make_tiny: Make, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tiny = make_tiny()
    with Disclosure("fedhelp-worker check") as disclosure:
        disclosure.belongs_to(load_silo(tiny.folder / "brno.yaml"))
        subprocess.run([sys.executable, "-c", f"import os; os.write(1, b'{CANARY}'); os.write(2, b'{CANARY}')"], check=True)
        disclosure.event({"event": "progress"})
        disclosure.error(as_error(RuntimeError(CANARY), "x", tmp_path))
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        '{"event": "progress"}',
        f"fedhelp-worker check: error: RuntimeError, which nobody foresaw; all of it is in {LOG} in the silo's state folder"]
    assert err == ""
    log = tiny.folder / "state" / "brno" / LOG
    assert log.read_text(encoding="utf-8").count(CANARY) == 3 and log.stat().st_mode & 0o077 == 0


def volume(path: Path) -> None:
    path.write_bytes(CANARY.encode() * 100)


def picture(path: Path) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)


LUNGS, BRAINS = TaskConfig(name="lung-segmentation", image_size=64), TaskConfig(name="brain-segmentation", image_size=64)
MASKS: dict[str, tuple[TaskConfig, dict[str, Callable[[Path], None]]]] = {
    "a mask of nothing": (LUNGS, {f"{CANARY}.png": picture, f"{CANARY}-mask.png": picture}),
    "no mask": (LUNGS, {f"{CANARY}.png": picture}),
    "a volume that is none": (BRAINS, {f"{CANARY}.nii": volume, f"{CANARY}-mask.nii": volume}),
    "a gzipped volume that is none": (BRAINS, {f"{CANARY}.nii.gz": volume, f"{CANARY}-mask.nii.gz": volume}),
    "a DICOM file that is none": (BRAINS, {f"{CANARY}.dcm": volume, f"{CANARY}-mask.dcm": volume}),
}


@pytest.mark.parametrize("name", MASKS)
def test_errors_of_masks_and_volumes_have_a_public_half_without_names(tmp_path: Path, name: str) -> None:
    task, files = MASKS[name]
    for file, write in files.items():
        write(tmp_path / file)
    ending = next(iter(files)).partition(".")[2]
    row = {"image": f"{CANARY}.{ending}", "label": f"{CANARY}-mask.{ending}"}
    (tmp_path / "list.json").write_text(json.dumps({"training": [row, {**row, "image": f"2-{CANARY}.{ending}"}], "test": [row]}), encoding="utf-8")
    (tmp_path / "silo.yaml").write_text(yaml.safe_dump(
        {"name": "brno", "state": "state", "data": {"layout": "datalist", "datalist": "list.json"}}), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_silo_arrays(load_silo(tmp_path / "silo.yaml"), task)
    assert CANARY in str(caught.value)
    assert CANARY not in public_half(caught.value)


@pytest.mark.parametrize("error", [
    ConfigError(CANARY), DataError([CANARY, CANARY]), PermanentError(CANARY), TeacherError(CANARY), FedHelpError(CANARY), ValueError(CANARY)],
    ids=lambda error: type(error).__name__)
def test_what_nobody_called_public_is_private(error: Exception) -> None:
    assert CANARY not in public_half(error)


@pytest.mark.parametrize("kind", [NotFound, WeightsError, AccessDenied])
def test_a_shared_sentence_that_names_a_data_folder_is_kept_back(
    make_tiny: Make, capfd: pytest.CaptureFixture[str], kind: type[FedHelpError],
) -> None:
    tiny = make_tiny()
    config = load_silo(tiny.folder / "brno.yaml")
    with Disclosure("worker") as disclosure:
        disclosure.belongs_to(config)
        disclosure.error(kind(f"{tiny.drawn / 'data' / 'images' / CANARY}.jpg: no such object"))
        disclosure.error(kind(f"{config.state}/runs/r/lock: no such object"))
    said = capfd.readouterr().out
    assert CANARY not in said and str(tiny.folder) not in said
    assert "<state>/runs/r/lock: no such object" in said


class Gateway(BaseHTTPRequestHandler):
    """A Pushgateway that keeps everything."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.path.encode() + self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        pass


def test_nothing_of_a_whole_run_names_a_patient(make_tiny: Make, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silo's data break after check: store, report, MLflow and metrics know that they did, and no more."""
    tiny = make_tiny(public_set=None, algorithm__method="fedavg", algorithm__rounds=1, protocol__min_silos=2)
    check_main.run(federation=str(tiny.path), run_id="r", settings={})
    broken_picture(tiny)
    shutil.rmtree(tiny.folder / "state" / "brno" / "cache")
    Gateway.bodies = []
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        where = ["--store", str(tiny.store), "--run", "r"]
        gateway = {"FEDHELP_PUSHGATEWAY": f"http://127.0.0.1:{server.server_port}"}
        output = succeeded(processes.component("federation", *where, **gateway), 280)
        output += succeeded(processes.component("evaluation", *where, "--report-file", tiny.folder / "report.html", **gateway), 280)
    finally:
        server.shutdown()
        server.server_close()
    commit = tiny.run("r").commit(1)
    assert commit is not None and "images that cannot be used: 1 training (row " in commit.absent["brno"]
    assert CANARY not in output
    assert Gateway.bodies and not any(CANARY.encode() in body for body in Gateway.bodies)
    assert leaks(tiny.folder, other_than=("data", "state", "logs")) == []  # logs: a forked worker's own, on the machine of who owns the data
    assert CANARY in (tiny.folder / "state" / "brno" / LOG).read_text(encoding="utf-8")
