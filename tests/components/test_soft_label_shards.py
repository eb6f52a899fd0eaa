"""Shards of a prefetch as processes beside each other, as pipeline `fedhelp` starts them: every image is asked about once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedhelp_components.check.__main__ import shards_of
from fedhelp_components.soft_label_prefetch.__main__ import figures_of, parsed_shard
from fedhelp_core.errors import ConfigError
from fedhelp_core.protocol.facts import SoftLabels
from tests.core.softlabels.helpers import SIDE, answer_to, draw_distinct
from tests.core.softlabels.inference_server import Answer, InferenceServer, json_answer, pixels_of
from tests.tiny import TinyFederation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # seconds; ten on two idle cores

IMAGES, BATCH, SHARDS = 300, 4, 3


class Counting(InferenceServer):
    """Knows how often each image was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self.answer = self._count

    def _count(self, _headers: Any, body: bytes) -> Answer:
        pixels = pixels_of(body)
        with self._lock:
            self.asked.update(image.tobytes() for image in pixels)
        return json_answer(answer_to(pixels))


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Counting()
    yield server
    server.close()


def started_run(folder: Path, public: Path, uri: str) -> TinyFederation:
    teacher = {"name": "counting", "kind": "openinference", "uri": uri, "classes": 2, "batch_size": BATCH}
    tiny = TinyFederation.written(
        folder, folder, task__image_size=SIDE, public_set={"images": str(public), "teachers": [teacher], "shards": SHARDS})
    tiny.run("r").freeze(tiny.load().to_yaml())
    return tiny


def prefetch(tiny: TinyFederation, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedhelp_components.soft_label_prefetch", "--store", str(tiny.store), "--run", "r", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_every_image_is_asked_about_once_and_the_set_is_that_of_one_task_alone(counting: Counting, tmp_path: Path) -> None:
    public = draw_distinct(tmp_path / "public", IMAGES)
    tiny = started_run(tmp_path / "sharded", public, counting.url)
    assert figures_of(str(tiny.store), "", "r") == {}
    shares = shards_of(tiny.load())
    assert shares == ["1/3", "2/3", "3/3"]
    outputs = [process.communicate(timeout=200)[0] for process in [prefetch(tiny, "--shard", share) for share in shares]]
    asked = [int(re.findall(r"(\d+) asked by this run", output)[0]) for output in outputs]
    assert all(0 < count <= IMAGES for count in asked), outputs
    assert set(counting.asked.values()) == {1}
    assert len(counting.asked) == IMAGES

    built = prefetch(tiny)
    output, _ = built.communicate(timeout=200)
    assert built.returncode == 0, output
    assert len(counting.asked) == counting.asked.total() == IMAGES
    fact = tiny.run("r").fact(SoftLabels)
    assert (fact.images, fact.asked, fact.cached) == (IMAGES, IMAGES, 0)  # the run's, whichever of its tasks asked
    figures = figures_of(str(tiny.store), "", "r")
    assert figures["soft_labels.counting.asked"] == IMAGES
    assert figures["soft_labels.counting.requests"] == fact.teachers["counting"].run.requests == len(counting.posts)

    alone = started_run(tmp_path / "alone", public, counting.url)
    output, _ = prefetch(alone).communicate(timeout=200)
    assert alone.run("r").fact(SoftLabels).sha256 == fact.sha256, output
    json.dumps(figures)  # what KFP keeps


@pytest.mark.parametrize(("text", "share"), [("", None), ("1/1", None), ("1/4", (1, 4)), ("4/4", (4, 4))])
def test_one_share_of_one_is_everything(text: str, share: tuple[int, int] | None) -> None:
    assert parsed_shard(text) == share


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/", "/4", "a/b", "1/4/2", "-1/4"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"shard: NUMBER/OF expected, e\.g\. 1/4, got"):
        parsed_shard(text)
