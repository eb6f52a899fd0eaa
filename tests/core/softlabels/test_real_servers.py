"""The client against model servers that others wrote: MLServer and KServe, installed and started here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig
from fedhelp_core.errors import TeacherError
from fedhelp_core.softlabels.distillation_set import load_distillation_set
from fedhelp_core.softlabels.openinference import OpenInferenceTeacher
from fedhelp_core.softlabels.prefetch import prefetch
from fedhelp_core.store.base import Store
from tests.core.softlabels.helpers import ABOUT, SIDE, about, draw, rows_by_shade, run, teacher_config
from tests.core.softlabels.model_servers import ModelServer, NoEnvironment, kserve, mlserver

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]  # seconds; installing (once, some 30 s each) does not count

SHADES = tuple(range(0, 240, 6))  # 40 images, so 20 requests of two


def started(server: Callable[[Path], AbstractContextManager[ModelServer]], factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    try:
        with server(factory.mktemp(server.__name__)) as running:
            yield running
    except NoEnvironment as e:
        pytest.skip(f"it could not be installed: {e}")


@pytest.fixture(scope="module")
def ml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    yield from started(mlserver, tmp_path_factory)


@pytest.fixture(scope="module")
def ks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    yield from started(kserve, tmp_path_factory)


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def teacher_at(server: ModelServer, **changes: object) -> OpenInferenceTeacher:
    return OpenInferenceTeacher(teacher_config(kind="openinference", uri=server.uri, concurrency=4, **changes))


def assert_asked_once(server: ModelServer, counter: str, store: Store, public: Path, **changes: object) -> None:
    """Every image is answered rightly, the server counts the requests that we report, and a second run makes none."""
    before = server.requests_answered(counter)
    report = run(store, public, teacher_at(server, **changes))
    assert server.requests_answered(counter) - before == report.teachers["teacher"].run.requests == len(SHADES) // 2
    assert rows_by_shade(store, report.distillation_set_sha256) == {shade: [shade / 256, 1 - shade / 256] for shade in SHADES}
    run(store, public, teacher_at(server, **changes))
    assert server.requests_answered(counter) - before == len(SHADES) // 2


def test_mlserver_is_asked_once_about_every_image(ml: ModelServer, local: Store, tmp_path: Path) -> None:
    assert_asked_once(ml, "model_infer_request_success_total", local, draw(tmp_path / "public", *SHADES))


@pytest.mark.parametrize("transport", ["json", "binary"])
def test_kserve_is_asked_once_about_every_image(ks: ModelServer, local: Store, tmp_path: Path, transport: str) -> None:
    assert_asked_once(ks, "request_predict_seconds_count", local, draw(tmp_path / "public", *SHADES), transport=transport)


@pytest.mark.parametrize("transport", ["json", "binary"])
def test_kserve_is_asked_for_masks(ks: ModelServer, local: Store, tmp_path: Path, transport: str) -> None:
    teacher = OpenInferenceTeacher(teacher_config(
        kind="openinference", uri=ks.uri.replace("shades", "masks"), classes=2, concurrency=4, transport=transport))
    public = PublicSetConfig(images=draw(tmp_path / "public", *SHADES), teachers=(teacher.config,))
    task = TaskConfig(name="lung-segmentation", image_size=SIDE)
    found = load_distillation_set(local, prefetch(local, public, task, teachers=[teacher]).distillation_set_sha256)
    everything = torch.arange(len(SHADES))
    torch.testing.assert_close(found.probabilities_NC[everything], found.images_NCHW[everything] / 255, rtol=0, atol=1e-6)
    assert sorted(found.images_NCHW[everything][:, 0, 0, 0].tolist()) == list(SHADES)


@pytest.mark.parametrize("name", ["ml", "ks"])
def test_what_real_metadata_rule_out_is_refused_before_anything_is_asked(name: str, request: pytest.FixtureRequest) -> None:
    server: ModelServer = request.getfixturevalue(name)
    wanted = r"expected a model of images of 16 x 16 pixels \(the teacher's or the task's image_size\), got UINT8 of shape"
    with pytest.raises(TeacherError, match=wanted):
        teacher_at(server).prepare(about(2 * SIDE))
    with pytest.raises(TeacherError, match=r"expected an output of 3 classes per image, got 'scores' of shape \[-1, 2\]"):
        teacher_at(server, classes=3).prepare(ABOUT)
    with pytest.raises(TeacherError, match="HTTP 404 from"):
        OpenInferenceTeacher(teacher_config(kind="openinference", uri=f"{server.uri}-absent")).prepare(ABOUT)
