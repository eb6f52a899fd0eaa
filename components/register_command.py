"""`fedhelp register`: put pipelines into Kubeflow through kfp's client, or take them out. Called by cli.py and by chart fedhelp-hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedhelp_core.errors import AccessDenied, ConfigError, PermanentError, StoreUnavailable

TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"


def register_with_kubeflow(packages: Sequence[Path], *, endpoint: str, namespace: str | None, remove: bool) -> None:
    """Register the compiled pipelines at `packages`, or this product's own where there are none.

    Raises:
        ConfigError: a package that is no compiled pipeline.
        AccessDenied, StoreUnavailable: Kubeflow refuses this account, or was not reached.
    """
    for package in packages:
        _require_pipeline(package)
    from fedhelp_pipelines.register import Registry, own_packages  # kfp takes seconds to import: after what is found wrong without it

    with tempfile.TemporaryDirectory() as folder, _explained(endpoint):
        registry = Registry(endpoint, namespace, token_path=os.environ.get(TOKEN_VARIABLE))
        for package in packages or own_packages(Path(folder)):
            name = package.stem
            if remove:
                print(f"pipeline {name}: {'removed' if registry.remove(name) else 'was not there'}")
                continue
            registered = registry.register(package, name)
            print(f"pipeline {name}: version {registered.version} {'registered' if registered.new else 'is there already'}")


def _require_pipeline(package: Path) -> None:
    import yaml

    try:
        documents = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{package}: cannot be read as YAML ({e}); give what `fedhelp compile` writes") from e
    if not documents or not isinstance(documents[0], dict) or "pipelineInfo" not in documents[0]:
        raise ConfigError(f"{package}: is no compiled pipeline (no pipelineInfo); give what `fedhelp compile` writes")


@contextmanager
def _explained(endpoint: str) -> Iterator[None]:
    """Errors of kfp's client as errors of our own."""
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as e:
        said = " ".join(str(e.body or e.reason).split())[:300]
        if e.status in (401, 403):
            raise AccessDenied(
                f"Kubeflow endpoint {endpoint}: does not let this account register pipelines ({said}); where Kubeflow is multi-user, set"
                " pipelines.tokenAudience and pipelines.namespace in the chart's values") from e
        if e.status >= 500 or e.status == 429:
            raise StoreUnavailable(f"Kubeflow endpoint {endpoint}: cannot answer now (HTTP {e.status}: {said}); try again later") from e
        raise PermanentError(f"Kubeflow endpoint {endpoint}: refused the pipeline (HTTP {e.status}: {said})") from e
    except (HTTPError, OSError, TimeoutError) as e:
        raise StoreUnavailable(
            f"Kubeflow endpoint {endpoint}: not reached ({type(e).__name__}); check --endpoint, or port-forward ml-pipeline") from e
