"""A client that is not ours, NVIDIA's for Triton, asks a served model as it asks any other server of the protocol."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.core.deployment.models import hospital
from tests.core.deployment.test_images_in import picture
from tests.core.serving.process import files, served
from tests.core.softlabels.model_servers import NoEnvironment, environment

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def test_tritons_client_gets_predicts_answers_and_our_sentences(tmp_path: Path) -> None:
    try:
        python = environment("triton-client", "tritonclient[http]==2.73.0")
    except NoEnvironment as e:
        pytest.skip(str(e))
    here, image, token = hospital(tmp_path / "here"), picture(tmp_path / "a.png"), tmp_path / "token"
    token.write_text("secret")
    with served(here, "--token-file", str(token), headers={"Authorization": "Bearer secret"}) as server:
        expected = server.answer(files(image))
        done = subprocess.run(
            [str(python), str(Path(__file__).with_name("triton_asks.py")), server.url.removeprefix("http://"), str(image), "secret", "chest"],
            capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["metadata"]["versions"] == ["3"] and found["metadata"]["inputs"][0] == {"name": "files", "datatype": "BYTES", "shape": [-1]}
    for encoding in ("binary", "json"):
        assert found[encoding]["probabilities"] == [expected["probabilities"]], "to the last bit"
        assert found[encoding]["decision"] == expected["decision"] and found[encoding]["sha256"] == expected["sha256"]
    assert found["refused"][0] == "400" and "files (BYTES), or pixels (numbers) expected, got x" in found["refused"][1]
