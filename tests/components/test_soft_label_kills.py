"""`kill -9` of a prefetch that asks eight questions at once, twenty times: no answer is lost, no image is asked twice unaccounted for."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedhelp_core.protocol.facts import SoftLabels
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests import warm
from tests.core.softlabels.helpers import SIDE, answer_to, draw_distinct
from tests.core.softlabels.inference_server import InferenceServer, json_answer, pixels_of
from tests.tiny import TinyFederation

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]  # seconds; about one minute on two idle cores

KILLS, CONCURRENCY, BATCH = 20, 8, 2
IMAGES = 1500  # more than what twenty lives of at most some 40 requests can ask about
ANSWER_TAKES = 0.02  # seconds, so that several are in flight


class CountingServer(InferenceServer):
    """Knows how often each image was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[bytes] = Counter()
        self.questions: Counter[str] = Counter()
        self._counting = threading.Condition()
        self.answer = self._count

    def _count(self, _headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        pixels = pixels_of(body)
        with self._counting:
            self.asked.update(image.tobytes() for image in pixels)
            self.questions[json.loads(body)["id"]] += 1
            self._counting.notify_all()
        time.sleep(ANSWER_TAKES)
        return json_answer(answer_to(pixels))

    def wait_for(self, questions: int, timeout: float) -> None:
        """Return once `questions` more have arrived."""
        with self._counting:
            until = self.questions.total() + questions
            assert self._counting.wait_for(lambda: self.questions.total() >= until, timeout), f"no {questions} questions within {timeout} s"


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = CountingServer()
    yield server
    server.close()


def started_run(folder: Path, public: Path, uri: str) -> TinyFederation:
    """A federation whose run `kept` may start its prefetch."""
    teacher = {"name": "counting", "kind": "openinference", "uri": uri, "classes": 2, "batch_size": BATCH, "concurrency": CONCURRENCY}
    tiny = TinyFederation.written(folder, folder, task__image_size=SIDE, public_set={"images": str(public), "teachers": [teacher]})
    tiny.run("kept").freeze(tiny.load().to_yaml())
    return tiny


def prefetch_process(tiny: TinyFederation) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedhelp_components.soft_label_prefetch", "--store", str(tiny.store), "--run", "kept"]
    return warm.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(tiny: TinyFederation) -> SoftLabels:
    """Let the prefetch end; what it says of itself."""
    process = prefetch_process(tiny)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return tiny.run("kept").fact(SoftLabels)


def in_doubt(store: Store) -> Counter[str]:
    """Batch -> how many requests about it have neither answer nor failure."""
    numbers: dict[str, set[str]] = {"requests": set(), "answers": set(), "failures": set()}
    bodies: dict[str, bytes] = {}
    for key in store.list("softlabels/ledger/"):
        *_, kind, name = key.split("/")
        numbers[kind].add(name[:8])
        if kind == "requests":
            bodies[name[:8]] = store.get(key)
    return Counter(json.loads(bodies[number])["batch"] for number in numbers["requests"] - numbers["answers"] - numbers["failures"])


def test_twenty_kills_cost_at_most_the_requests_in_flight_and_the_report_knows_them_all(counting: CountingServer, tmp_path: Path) -> None:
    public = draw_distinct(tmp_path / "public", IMAGES)
    tiny = started_run(tmp_path / "stormy", public, counting.url)
    store = open_store(str(tiny.store))
    moments = random.Random(6)
    doubted: Counter[str] = Counter()
    for _ in range(KILLS):
        process = prefetch_process(tiny)
        counting.wait_for(moments.randint(1, 12), timeout=120)
        time.sleep(moments.uniform(0, ANSWER_TAKES))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, output
        now = in_doubt(store)
        assert now >= doubted, "a request in doubt was forgotten"
        assert (now - doubted).total() <= CONCURRENCY
        doubted = now

    fact = finished(tiny)
    account = fact.teachers["counting"].run
    duplicates = counting.questions - Counter(counting.questions.keys())
    assert len(counting.asked) == fact.images == IMAGES
    assert duplicates.total() > 0, "no kill hit a request in flight: the test shows nothing"
    assert duplicates <= doubted, "a question was asked twice that the ledger does not doubt"
    assert sum(counting.asked.values()) - IMAGES == BATCH * duplicates.total()
    assert (account.in_doubt, account.in_doubt_images) == (doubted.total(), BATCH * doubted.total())
    assert (account.requests, account.images) == (IMAGES // BATCH, IMAGES)
    assert counting.questions.total() <= account.requests + account.in_doubt

    questions = counting.questions.total()
    calm = started_run(tmp_path / "calm", public, counting.url)
    assert finished(calm).sha256 == fact.sha256
    assert counting.questions.total() == questions + IMAGES // BATCH  # nothing is asked twice where nothing is killed
