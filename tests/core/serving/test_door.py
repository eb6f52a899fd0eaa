"""Who may ask, over what, and what one of them can take from the others."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from fedhelp_cli.main import main
from tests.cluster.certificates import Authority
from tests.core.deployment.models import hospital
from tests.core.deployment.test_images_in import picture
from tests.core.serving.process import files, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_token_is_asked_for_and_a_new_one_needs_no_restart(tmp_path: Path) -> None:
    here, image, tokens = hospital(tmp_path / "here"), files(picture(tmp_path / "a.png")), tmp_path / "tokens"
    tokens.write_text("first\n")
    with served(here, "--token-file", str(tokens)) as server:
        paths = ["/v2", "/v2/models/chest", "/metrics"]
        for headers, status in (({}, 401), (bearer("other"), 401), ({"Authorization": "Basic first"}, 401), (bearer("first"), 200)):
            assert server.client.post("/v2/models/chest/infer", json={"inputs": [image]}, headers=headers).status_code == status
            assert [server.client.get(path, headers=headers).status_code for path in paths] == [200, status, status]
        assert server.client.get("/v2/health/ready").status_code == server.client.get("/v2/health/live").status_code == 200
        said = server.client.get("/v2/models/chest")
        assert said.headers["www-authenticate"] == "Bearer" and "a bearer token expected" in said.json()["error"]
        tokens.write_text("second\nthird\n")
        assert [server.client.get("/metrics", headers=bearer(token)).status_code for token in ("first", "second", "third")] == [401, 200, 200]
        tokens.unlink()
        assert server.client.get("/metrics", headers=bearer("second")).status_code == 500, "nobody is let in"
        code, said = server.stop()
        assert code == 143 and "second" not in said


def test_over_tls_and_a_renewed_certificate_needs_no_restart(tmp_path: Path) -> None:
    here, image = hospital(tmp_path / "here"), files(picture(tmp_path / "a.png"))
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def issue(by: Authority) -> None:
        made = by.server("serving", ["127.0.0.1"])
        cert.write_bytes(made.certificate.read_bytes())
        key.write_bytes(made.key.read_bytes())

    issue(authority)
    trusts = ssl.create_default_context(cafile=str(authority.pair.certificate))
    with served(here, "--tls-cert", str(cert), "--tls-key", str(key), scheme="https", verify=trusts) as server:
        assert server.answer(image)["class"]
        issue(other)
        renewed = ssl.create_default_context(cafile=str(other.pair.certificate))
        while not answers(server.url, renewed):  # new connections see the new certificate
            time.sleep(0.1)
        assert not answers(server.url, trusts)
        assert server.answer(image)["class"], "a connection that was open goes on"


def answers(url: str, trusts: ssl.SSLContext) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/live", verify=trusts, trust_env=False).status_code == 200
    except httpx.ConnectError:
        return False


def test_an_answer_that_takes_too_long_is_given_up_and_the_next_one_is_made(tmp_path: Path) -> None:
    here = hospital(tmp_path / "here", "lung-segmentation")
    image = picture(tmp_path / "a.png", size=(300, 300), mode="L")
    with served(here, "--timeout", "0.5") as server:
        said = server.infer(files(*[image] * 200))
        assert said.status_code == 504 and "no answer within 0.5 seconds" in said.json()["error"]
        for _ in range(50):
            if server.infer(files(image)).status_code == 200:
                break
        else:
            raise AssertionError("nothing is answered any more")


def typed(*options: str) -> Result:
    return CliRunner().invoke(main, ["serve", *options])


def test_a_door_that_would_stand_open_is_not_opened(tmp_path: Path) -> None:
    silo = ("--silo", str(hospital(tmp_path / "here").silo))
    (tmp_path / "empty").write_text("\n")
    for options, sentence in (
        (("--host", "0.0.0.0"), "without --token-file every machine that reaches this one could ask"),
        (("--tls-cert", "x"), "--tls-cert and --tls-key: both or none expected"),
        (("--tls-cert", str(tmp_path / "empty"), "--tls-key", str(tmp_path / "empty")), "cannot be used"),
        (("--token-file", str(tmp_path / "empty")), "is empty"),
        (("--token-file", str(tmp_path / "gone")), "cannot be read (No such file"),
        (("--host", "192.0.2.1", "--no-token"), "cannot be served on"),
    ):
        done = typed(*silo, *options)
        assert done.exit_code == 10 and sentence in done.output and "Traceback" not in done.output, done.output
