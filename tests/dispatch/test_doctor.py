"""The doctor that a hospital runs: every look is made, and what is wrong is a sentence."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time

import numpy as np
import pytest
import yaml
from PIL import Image

from fedhelp_core.errors import AccessDenied, ConfigError, DataError, StoreUnavailable
from fedhelp_dispatch.doctor import look_at_clock, main

Doctor = Callable[..., int]


@pytest.fixture
def silo(tmp_path: Path) -> Path:
    """A hospital's folder: four images, their list, silo.yaml."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), 60 * number, np.uint8)).save(data / f"{number}.png")
    lists = {"training": [0, 1], "validation": [2], "test": [3]}
    (data / "datalist.json").write_text(json.dumps(
        {split: [{"image": f"{number}.png", "label": number % 2} for number in numbers] for split, numbers in lists.items()}))
    layout = {"layout": "datalist", "datalist": str(data / "datalist.json")}
    (tmp_path / "silo.yaml").write_text(yaml.safe_dump({"version": 1, "name": "charite", "state": str(tmp_path / "state"), "data": layout}))
    return tmp_path


@pytest.fixture
def doctor(silo: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    monkeypatch.setenv("FEDHELP_SILO_CONFIG", str(silo / "silo.yaml"))
    return lambda *arguments: main(["--store", str(silo / "store"), *arguments])


@pytest.fixture
def clock() -> Iterator[Callable[[float], str]]:
    """clock(600) -> address of a server whose clock is ten minutes ahead; like S3, it denies who shows no credentials."""
    servers = []

    def serve(ahead: float) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response_only(403)
                self.send_header("Date", formatdate(time() + ahead, usegmt=True))
                self.end_headers()

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_hospital_in_order_is_told_so(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor() == 0

    said = capsys.readouterr().out
    assert "lists 2 training, 1 validation, 1 test images" in said
    assert "the first 4 of them open as images" in said
    assert "can be written" in said
    assert "nothing has left this silo yet" in said
    assert "never overwrites one" in said
    assert said.endswith("everything is in order\n")


def test_everything_wrong_is_listed_and_the_first_one_gives_the_exit_code(
    doctor: Doctor, silo: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    (silo / "data" / "2.png").write_bytes(b"no image")
    (silo / "store").write_text("a file where the store's folder should be")

    assert doctor("--gpu") == DataError.exit_code

    said = capsys.readouterr().out
    assert "wrong  data:" in said
    assert "2.png: cannot be read as an image" in said
    assert "wrong  store:" in said
    assert "wrong  gpu: a GPU was asked for, but PyTorch" in said
    assert "3 things have to be put right" in said


def test_a_missing_image_is_named(doctor: Doctor, silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (silo / "data" / "3.png").unlink()

    assert doctor() == DataError.exit_code
    assert "3.png: no such image file" in capsys.readouterr().out


def test_a_wrong_silo_yaml_ends_it_at_once(doctor: Doctor, silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (silo / "silo.yaml").write_text("name: Charité\n")

    assert doctor() == ConfigError.exit_code
    assert "wrong  silo.yaml:" in capsys.readouterr().out


def test_what_left_is_summed_up(doctor: Doctor, silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (silo / "state").mkdir()
    entry = {"time": "2026-11-01T10:00:00.000+00:00", "run": "r", "object": "o", "bytes": 2**20, "sha256": "0"}
    (silo / "state" / "egress.jsonl").write_text((json.dumps(entry) + "\n") * 2)

    assert doctor() == 0
    assert "2 objects (2.0 MiB) left this silo so far, the last one at 2026-11-01" in capsys.readouterr().out


def test_a_ledger_that_somebody_edited_is_pointed_out(doctor: Doctor, silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (silo / "state").mkdir()
    (silo / "state" / "egress.jsonl").write_text("nothing left, honestly\n")

    assert doctor() == DataError.exit_code
    assert "has a line that no worker wrote" in capsys.readouterr().out


def test_a_state_folder_that_cannot_be_made_is_named(doctor: Doctor, silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((silo / "silo.yaml").read_text())
    (silo / "silo.yaml").write_text(yaml.safe_dump({**config, "state": "/proc/state"}))

    assert doctor() in (AccessDenied.exit_code, DataError.exit_code, ConfigError.exit_code)
    assert "wrong  state: /proc/state" in capsys.readouterr().out


@pytest.mark.parametrize(("ahead", "said"), [(1000.0, "behind"), (-1000.0, "ahead of")])
def test_a_clock_that_is_off_is_found_before_signatures_are_refused(ahead: float, said: str, clock: Callable[[float], str]) -> None:
    with pytest.raises(ConfigError, match=f"{said} http://127"):
        list(look_at_clock("s3://bucket/prefix", clock(ahead)))


def test_a_clock_in_step_is_said_to_be(clock: Callable[[float], str]) -> None:
    assert "within" in next(look_at_clock("s3://bucket/prefix", clock(0.0)))


def test_a_store_that_does_not_answer_is_named() -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        list(look_at_clock("s3://bucket/prefix", "http://127.0.0.1:9"))
