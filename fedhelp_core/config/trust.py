"""Whom the hub's own settings trust: a federation.yaml comes from anybody, and may name only what they allow.

Chart fedhelp-hub writes them, and every task of a pipeline finds them through $FEDHELP_TRUST. On a user's own machine, which has no such file,
nothing is restricted: the federation.yaml is the user's own, and so are the credentials. In a pod a missing file allows nothing. Called by whatever
opens a federation in the hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from fedhelp_core.budget import MOST_YAML_BYTES, json_in, regular_bytes
from fedhelp_core.config.federation import Federation
from fedhelp_core.config.section import Section, validated
from fedhelp_core.config.start import StartConfig
from fedhelp_core.config.teachers import TeacherConfig
from fedhelp_core.errors import ConfigError

TRUST_VARIABLE = "FEDHELP_TRUST"
"""Path of the JSON file with a `Trust`."""
_POD_VARIABLE = "KUBERNETES_SERVICE_HOST"  # which Kubernetes sets in every container
_NEXT = "use another, or have the hub's operator add it to trust in the values of chart fedhelp-hub"


class Trust(Section):
    """What a federation may name."""

    secret_folder: Path = Path("/etc/fedhelp-teachers")
    """Teachers' secrets and certificate authorities are files below it."""
    secret_variables: str = "FEDHELP_TEACHER_"
    """Teachers' secrets are environment variables that begin so."""
    teacher_hosts: tuple[str, ...] = ()
    """Hosts, or host:port, of teachers that are asked over HTTP."""
    model_uris: tuple[str, ...] = ()
    """MLflow models that may be teachers; one that ends with '/' stands for all below it."""
    pyfunc: bool = False
    """Whether MLflow models may be teachers at all: they run their authors' code."""
    tracking_uris: tuple[str, ...] = ()
    """MLflow servers."""
    store_urls: tuple[str, ...] = ()
    """Stores; one stands for all below it."""
    store_endpoints: tuple[str, ...] = ()
    """S3 endpoints other than AWS."""


def trust_of_this_hub() -> Trust | None:
    """That of $FEDHELP_TRUST; None on a user's own machine. A pod in which the file is missing trusts nothing.

    Raises:
        ConfigError: the file cannot be used.
    """
    named = os.environ.get(TRUST_VARIABLE)
    if not named:
        return None
    path = Path(named)

    def wrong(why: str) -> ConfigError:
        return ConfigError(f"${TRUST_VARIABLE}: {path}: {why}; chart fedhelp-hub writes it")

    try:
        return validated(Trust, json_in(regular_bytes(path, MOST_YAML_BYTES, wrong), wrong), str(path))
    except FileNotFoundError:
        return Trust() if _POD_VARIABLE in os.environ else None  # Kubeflow's local runner sets the variable too
    except OSError as e:
        raise wrong(str(e)) from e


def require_trusted(federation: Federation) -> None:
    """Nothing where the hub's settings allow everything that `federation` names.

    Raises:
        ConfigError: with everything that they do not.
    """
    trust = trust_of_this_hub()
    if trust is not None and (problems := list(_problems(federation, trust))):
        raise ConfigError([f"{problem}; {_NEXT}" for problem in problems])


def _problems(federation: Federation, trust: Trust) -> Iterator[str]:
    store = federation.store
    if not any(_is_below(store.url, allowed) for allowed in trust.store_urls):
        yield f"store.url: this hub does not trust {store.url!r} (trust.storeUrls)"
    if store.endpoint_url is not None and not _is_one_of(store.endpoint_url, trust.store_endpoints):
        yield f"store.endpoint_url: this hub does not trust {store.endpoint_url!r} (trust.storeEndpoints)"
    if federation.tracking.uri is not None and not _is_one_of(federation.tracking.uri, trust.tracking_uris):
        yield "tracking.uri: this hub does not trust this MLflow server (trust.trackingUris)"
    if isinstance(federation.start, StartConfig) and federation.start.file is not None:
        yield "start.file: a file of this hub's pods is nobody's to name; start from model: champion, or from a version"
    for which, model in federation.algorithm.pretrained.items():
        if model.file is not None:
            yield (f"algorithm.pretrained.{which}.file: a file of this hub's pods is nobody's to name; put it into the store and leave the file out"
                   " (docs/models.md)")
    teachers = federation.public_set.teachers if federation.public_set is not None else ()
    for number, teacher in enumerate(teachers):
        for problem in _problems_of_teacher(teacher, trust):
            yield f"public_set.teachers.{number} ({teacher.name!r}): {problem}"


def _problems_of_teacher(teacher: TeacherConfig, trust: Trust) -> Iterator[str]:
    if teacher.kind == "mlflow":
        if not trust.pyfunc:
            yield "an MLflow model runs its author's code, which this hub does not allow (trust.pyfunc)"
        if not any(teacher.uri == allowed or (allowed.endswith("/") and _is_below(teacher.uri, allowed)) for allowed in trust.model_uris):
            yield f"uri: this hub does not trust model {teacher.uri!r} (trust.modelUris)"
    elif not _is_host_of(teacher.uri, trust.teacher_hosts):
        yield "uri: this hub does not trust this host (trust.teacherHosts)"
    if teacher.auth is not None and teacher.auth.env is not None and not teacher.auth.env.startswith(trust.secret_variables or "\0"):
        yield f"auth.env: a variable that begins with {trust.secret_variables} expected (trust.secretVariables)"
    for field, file in (("auth.file", teacher.auth.file if teacher.auth is not None else None), ("ca_file", teacher.ca_file)):
        if file is not None and not file.resolve().is_relative_to(trust.secret_folder.resolve()):
            yield f"{field}: a file below {trust.secret_folder} expected (trust.secretFolder)"


def _is_one_of(address: str, allowed: Sequence[str]) -> bool:
    return address.rstrip("/") in {one.rstrip("/") for one in allowed}


def _is_below(address: str, allowed: str) -> bool:
    """Whether `address` is `allowed`, or below it, without a way up again."""
    return ".." not in address.split("/") and f"{address.rstrip('/')}/".startswith(f"{allowed.rstrip('/')}/")


def _is_host_of(uri: str, allowed: Sequence[str]) -> bool:
    """Whether `uri` leads to one of the hosts: by name alone, or by name and port."""
    try:
        parts = urlsplit(uri)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return False
    host = (parts.hostname or "").lower()
    return "@" not in parts.netloc and bool(host) and bool({host, f"{host}:{port}"} & {one.lower() for one in allowed})
