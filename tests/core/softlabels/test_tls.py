"""A teacher behind HTTPS whose certificate the system does not know: trusted through `ca_file`, or not at all."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhelp_core.errors import ConfigError
from fedhelp_core.softlabels.openinference import OpenInferenceTeacher
from fedhelp_core.store.base import Store
from tests.cluster.certificates import Authority
from tests.core.softlabels.helpers import ABOUT, draw, rows_by_shade, run, teacher_config
from tests.core.softlabels.inference_server import InferenceServer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secure(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[InferenceServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    pair = authority.server("teacher", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server = InferenceServer(context)
    yield server
    server.close()


def test_the_authority_of_the_config_is_trusted(secure: InferenceServer, authority: Authority, local: Store, tmp_path: Path) -> None:
    report = run(local, draw(tmp_path / "public", 0, 64, 128), secure.teacher(ca_file=authority.pair.certificate, concurrency=2))
    assert rows_by_shade(local, report.distillation_set_sha256)[64] == [0.25, 0.75]


def test_without_it_nothing_is_asked(secure: InferenceServer) -> None:
    with pytest.raises(ConfigError, match=r"the certificate of 127\.0\.0\.1 is not trusted \(.*\); give its authority as ca_file"):
        secure.teacher().prepare(ABOUT)
    assert secure.gets == []


def test_another_authority_is_not_enough(secure: InferenceServer, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    with pytest.raises(ConfigError, match="is not trusted"):
        secure.teacher(ca_file=stranger.pair.certificate).prepare(ABOUT)


def test_a_certificate_for_another_name_is_refused(secure: InferenceServer, authority: Authority) -> None:
    with pytest.raises(ConfigError, match=r"the certificate of localhost is not trusted \(Hostname mismatch.*'localhost'"):
        secure.teacher(uri=secure.url.replace("127.0.0.1", "localhost"), ca_file=authority.pair.certificate).prepare(ABOUT)
    assert secure.gets == []


@pytest.mark.parametrize("content", [None, b"", b"no certificate"], ids=["absent", "empty", "not PEM"])
def test_a_file_without_certificates_is_a_config_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^teacher 'teacher': ca_file {re.escape(str(path))} cannot be used .*; a PEM file of"):
        OpenInferenceTeacher(teacher_config(kind="openinference", uri="https://host/v2/models/derma", ca_file=path))
