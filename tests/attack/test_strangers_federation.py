"""A federation.yaml from a stranger gets neither the hub's secrets nor its code path: it may name only what the hub's own settings trust."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_components.check import __main__ as check_main
from fedhelp_components.session import open_session
from fedhelp_core.config.trust import TRUST_VARIABLE, Trust, require_trusted
from fedhelp_core.errors import ConfigError, TeacherError
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.models import load_pyfunc, save_pyfunc_from_code
from tests.tiny import TinyFederation

pytestmark = [pytest.mark.attack, pytest.mark.slow]
Make = Callable[..., TinyFederation]
SECRETS = Path("/etc/fedhelp-teachers")


@pytest.fixture
def trusting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trust]:
    """Writes the hub's settings, as the chart does."""

    def write(**settings: Any) -> Trust:
        found = Trust.model_validate(settings)
        (tmp_path / "trust.json").write_text(found.model_dump_json(), encoding="utf-8")
        monkeypatch.setenv(TRUST_VARIABLE, str(tmp_path / "trust.json"))
        return found

    return write


def teacher(**fields: Any) -> dict[str, Any]:
    return {"name": "eve", "kind": "openinference", "uri": "https://teacher.example/v2/models/m", "classes": 5, **fields}


GOOD = {"teacher_hosts": ["teacher.example"], "store_urls": ["s3://federation"], "store_endpoints": ["https://s3.example"],
        "tracking_uris": ["https://mlflow.example"], "model_uris": ["models:/derma/1", "models:/all/"]}
STORE = {"url": "s3://federation/melanoma", "endpoint_url": "https://s3.example/"}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a secret of the hub": ("auth.env", {"public_set__teachers": [teacher(auth={"kind": "bearer", "env": "AWS_SECRET_ACCESS_KEY"})]}),
    "another secret": ("auth.env", {"public_set__teachers": [teacher(auth={"kind": "bearer", "env": "MLFLOW_TRACKING_TOKEN"})]}),
    "a variable that only ends so": ("auth.env", {"public_set__teachers": [teacher(auth={"kind": "bearer", "env": "X_FEDHELP_TEACHER_A"})]}),
    "the kubeconfig": ("auth.file", {"public_set__teachers": [teacher(auth={"kind": "bearer", "file": "/etc/fedhelp-kubeconfig/config"})]}),
    "the account's token": ("auth.file", {"public_set__teachers": [teacher(
        auth={"kind": "bearer", "file": "/var/run/secrets/kubernetes.io/serviceaccount/token"})]}),
    "a way up": ("auth.file", {"public_set__teachers": [teacher(auth={"kind": "bearer", "file": f"{SECRETS}/../x/config"})]}),
    "a folder that begins alike": ("auth.file", {"public_set__teachers": [teacher(auth={"kind": "bearer", "file": "/etc/fedhelp-teachers2/x"})]}),
    "a file of the system as authority": ("ca_file", {"public_set__teachers": [teacher(ca_file="/etc/shadow")]}),
    "another teacher": ("this host", {"public_set__teachers": [teacher(uri="https://evil.example/v2/models/m")]}),
    "a teacher with a trusted name in its path": ("this host", {"public_set__teachers": [teacher(uri="https://evil.example/teacher.example/v2/models/m")]}),
    "a teacher whose name ends alike": ("this host", {"public_set__teachers": [teacher(uri="https://evilteacher.example/v2/models/m")]}),
    "a teacher whose name begins alike": ("this host", {"public_set__teachers": [teacher(uri="https://teacher.example.evil/v2/models/m")]}),
    "the cloud's metadata": ("this host", {"public_set__teachers": [teacher(uri="http://169.254.169.254/v2/models/m")]}),
    "a model's code": ("runs its author's code", {"public_set__teachers": [teacher(kind="mlflow", uri="models:/derma/1")]}),
    "another MLflow": ("tracking.uri", {"tracking__uri": "https://mlflow.example.evil"}),
    "a trusted MLflow's port": ("tracking.uri", {"tracking__uri": "https://mlflow.example:8443"}),
    "another store": ("store.url", {"store__url": "s3://evil/melanoma"}),
    "a store that begins alike": ("store.url", {"store__url": "s3://federation-evil/melanoma"}),
    "a folder of the hub": ("store.url", {"store": {"url": "/etc"}}),
    "another endpoint": ("store.endpoint_url", {"store__endpoint_url": "https://s3.evil"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_does_not_trust_is_refused_before_anything_is_opened(make_tiny: Make, trusting: Callable[..., Trust], name: str) -> None:
    trusting(**GOOD)
    said, changes = REFUSED[name]
    base = {"store": STORE, "tracking__uri": "https://mlflow.example", "public_set__teachers": [teacher()]}
    federation = make_tiny(**copy.deepcopy(base | changes)).load()
    with pytest.raises(ConfigError, match=said) as caught:
        require_trusted(federation)
    assert len(caught.value.problems) == 1 and "values of chart fedhelp-hub" in str(caught.value)


def test_what_the_hub_trusts_is_taken(make_tiny: Make, trusting: Callable[..., Trust]) -> None:
    trusting(**GOOD, pyfunc=True)
    for one in (
            teacher(auth={"kind": "bearer", "env": "FEDHELP_TEACHER_EVE"}), teacher(auth={"kind": "bearer", "file": str(SECRETS / "eve")}),
            teacher(uri="https://Teacher.example:443/v2/models/m"), teacher(kind="mlflow", uri="models:/derma/1"),
            teacher(kind="mlflow", uri="models:/all/2")):
        require_trusted(make_tiny(store={**STORE}, tracking__uri="https://mlflow.example", public_set__teachers=[one]).load())


@pytest.mark.parametrize("uri", ["models:/derma/10", "models:/all/../derma/2", "models:/al", "runs:/x/model", "s3://evil/model", "/public/teacher"])
def test_a_model_that_is_not_named_is_refused(make_tiny: Make, trusting: Callable[..., Trust], uri: str) -> None:
    trusting(**GOOD, pyfunc=True)
    with pytest.raises(ConfigError, match=r"trust\.modelUris"):
        require_trusted(make_tiny(store={**STORE}, tracking__uri=None, public_set__teachers=[teacher(kind="mlflow", uri=uri)]).load())


def test_check_and_every_later_step_refuse_it(make_tiny: Make, trusting: Callable[..., Trust]) -> None:
    """The frozen config in the store is read again by every step: somebody may have put another there."""
    tiny = make_tiny()
    federation = tiny.load()
    Run(open_store(str(tiny.store)), "r").freeze(federation.to_yaml())
    trusting()
    with pytest.raises(ConfigError, match="does not trust"):
        check_main.start(federation, "r2")
    with pytest.raises(ConfigError, match="does not trust"):
        open_session(str(tiny.store), "r")
    assert not tiny.run("r2").store.list("runs/r2")


def test_a_pod_without_settings_trusts_nothing_and_a_laptop_its_user(make_tiny: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    federation = make_tiny().load()
    require_trusted(federation)
    monkeypatch.setenv(TRUST_VARIABLE, str(tmp_path / "absent.json"))
    require_trusted(federation)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ConfigError, match="does not trust"):
        require_trusted(federation)


@pytest.mark.parametrize("body", ["", "[]", "{", '{"pyfunc": "maybe"}', '{"teacher_host": []}', "[" * 100_000])
def test_settings_that_cannot_be_read_stop_everything(make_tiny: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    (tmp_path / "trust.json").write_text(body, encoding="utf-8")
    monkeypatch.setenv(TRUST_VARIABLE, str(tmp_path / "trust.json"))
    with pytest.raises(ConfigError):
        require_trusted(make_tiny().load())


NOSY = '''
import json, os
from pathlib import Path
import mlflow, numpy as np
from mlflow.pyfunc import PythonModel


def seen():
    found = dict(os.environ)
    parent = Path(f"/proc/{os.getppid()}/environ")
    try:
        found["parent"] = parent.read_text()
    except OSError as e:
        found["parent"] = type(e).__name__
    return found


class Nosy(PythonModel):
    def load_context(self, context):
        print("noise on standard output", flush=True)
        Path(context.artifacts["row"]).write_text(json.dumps(seen()))

    def predict(self, context, model_input, params=None):
        return eval(context.model_config["answer"])


mlflow.models.set_model(Nosy())
'''


def nosy(folder: Path, answer: str) -> Path:
    (folder / "code.py").write_text(NOSY, encoding="utf-8")
    (folder / "row.json").write_text("{}", encoding="utf-8")
    save_pyfunc_from_code(folder / "model", code=folder / "code.py", artifacts={"row": folder / "row.json"}, settings={"answer": answer})
    return folder / "model"


def test_a_models_own_code_sees_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI", "KUBECONFIG", "FEDHELP_TEACHER_X", "ANY_TOKEN")
    for name in names:
        monkeypatch.setenv(name, "sqlite:///planted" if name.endswith("URI") else "planted-secret")
    model = nosy(tmp_path, "np.zeros((len(model_input), 2))")
    predict, _ = load_pyfunc(str(model))
    assert predict(np.zeros((2, 8, 8, 3), np.uint8)).tolist() == [[0, 0], [0, 0]]
    seen = json.loads(next(model.rglob("row.json")).read_text(encoding="utf-8"))
    assert not set(names) & set(seen) and "planted" not in json.dumps({k: v for k, v in seen.items() if k != "parent"})
    assert seen["HOME"] != os.environ.get("HOME")
    if os.getuid() != 0:  # root reads everything
        assert seen["parent"] == "PermissionError"


@pytest.mark.parametrize("answer", [
    "os._exit(0)", "np.zeros((2**31,), np.float32)", "'text'", "None", "[object()]", "{'a': 1}", "exit()", "os.kill(os.getpid(), 9)",
    "os.write(1, b'A' + b'\\xff' * 8) and np.array([object()])"])
def test_whatever_a_models_code_answers_ends_in_one_sentence(tmp_path: Path, answer: str) -> None:
    predict, _ = load_pyfunc(str(nosy(tmp_path, answer)))
    with pytest.raises(TeacherError) as caught:
        predict(np.zeros((2, 8, 8, 3), np.uint8))
    assert str(caught.value).isprintable() and "\n" not in str(caught.value)
