"""What is adopted, or gone back to, answers within seconds; no request is lost, whatever is killed."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.core.deployment.models import hospital
from tests.core.deployment.test_images_in import picture
from tests.core.serving.process import Served, files, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Load:
    """Clients that ask all the time; what each answer was."""

    def __init__(self, server: Served, image: Path, clients: int = 4) -> None:
        self.answers: Counter[tuple[int, str, float]] = Counter()
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(server, files(image))) for _ in range(clients)]

    def _ask(self, server: Served, question: dict[str, object]) -> None:
        while not self._end.is_set():
            said = server.infer(question)
            document = said.json()
            key = (said.status_code, document.get("model_version", document.get("error")), document["outputs"][0]["data"][0])
            with self._lock:
                self.answers[key] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, more: int = 20) -> None:
        """Until `more` answers came."""
        before = self.answers.total()
        while self.answers.total() < before + more:
            time.sleep(0.02)


def test_adopting_and_going_back_under_load_loses_no_request_and_mixes_no_answers(tmp_path: Path) -> None:
    here, image = hospital(tmp_path / "here"), picture(tmp_path / "a.png")
    with served(here) as server:
        with Load(server, image) as load:
            load.goes_on()
            here.put_in_use(2, version="4")
            server.wait_for("4")
            load.goes_on()
            here.put_in_use(3, version="5")
            server.wait_for("5")
            load.goes_on()
            with here.models.locked():
                here.models.back()
            server.wait_for("4")
            load.goes_on()
        assert {(status, version) for status, version, _ in load.answers} == {(200, "3"), (200, "4"), (200, "5")}
        assert len(load.answers) == 3, "each version has one answer"
        metrics = server.client.get("/metrics").text
        assert f'fedhelp_serving_requests_total{{outcome="answered"}} {load.answers.total()}.0' in metrics


def test_a_damaged_version_never_answers_and_the_one_before_goes_on(tmp_path: Path) -> None:
    here, image = hospital(tmp_path / "here"), picture(tmp_path / "a.png")
    with served(here) as server:
        adopted = here.put_in_use(2, version="4")  # the server may have loaded it already, so the next one is damaged before it is pointed to
        server.wait_for("4")
        pointer = here.models.folder / "in-use.json"
        good = pointer.read_text()
        pointer.write_text("{")
        time.sleep(2.5)
        assert server.answer(files(image))["class"] and server.client.get("/v2/health/ready").status_code == 200
        pointer.write_text(good)
        code, said = server.stop()
    assert code == 143 and "is damaged" in said and "version 4 goes on answering" in said and "Traceback" not in said
    body = bytearray(adopted.weights.read_bytes())
    body[-1] ^= 1
    adopted.weights.write_bytes(body)
    with served(here) as server:
        assert server.client.get("/v2/health/live").status_code == 200 and server.client.get("/v2/health/ready").status_code == 503
        said = server.infer(files(image))
        assert said.status_code == 503 and "tampered with or damaged" in said.json()["error"]
        with here.models.locked():
            here.models.back()
        server.wait_for("3")
        assert server.infer(files(image)).status_code == 200


def test_kill_minus_nine_starts_again_with_the_same_version_and_answer(tmp_path: Path) -> None:
    here, image = hospital(tmp_path / "here"), picture(tmp_path / "a.png")
    here.put_in_use(2, version="4")
    with served(here) as server:
        before = server.infer(files(image)).json()
        server.stop(signal.SIGKILL)
        port = server.port
    with served(here, port=port) as server:
        assert server.infer(files(image)).json() == before and before["model_version"] == "4"


def test_sigterm_lets_the_answers_that_are_being_made_go_out(tmp_path: Path) -> None:
    here = hospital(tmp_path / "here", "lung-segmentation")
    image = picture(tmp_path / "a.png", size=(300, 300), mode="L")
    with served(here) as server:
        said: list[int] = []
        asks = threading.Thread(target=lambda: said.append(server.infer(files(*[image] * 60)).status_code))
        asks.start()
        while "fedhelp_serving_questions_now 1.0" not in server.client.get("/metrics").text:
            time.sleep(0.01)
        code, _ = server.stop()
        asks.join()
        assert said == [200] and code == 143


def test_before_anything_is_adopted_the_server_waits_and_says_what_to_do(tmp_path: Path) -> None:
    here = hospital(tmp_path / "here", in_use=False)
    with served(here) as server:
        assert server.client.get("/v2/health/ready").status_code == 503
        said = server.client.get("/v2/models/chest")
        assert said.status_code == 503 and "fetch and adopt one" in said.json()["error"] and said.headers["retry-after"]
        here.put_in_use()
        while server.client.get("/v2/health/ready").status_code == 503:
            time.sleep(0.05)
        server.wait_for("3")
