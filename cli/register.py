"""`fedhelp register`: put pipelines into Kubeflow through kfp's client, or take them out. Called by main.py and by chart fedhelp-hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedhelp_cli.commands import warn
from fedhelp_cli.kubeflow_endpoint import kubeflow_errors, require_address
from fedhelp_cli.run_form import offered_form_of
from fedhelp_core.config.federation import load_federation
from fedhelp_core.errors import ConfigError

TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
_ADVICE = "where Kubeflow is multi-user, set pipelines.tokenAudience and pipelines.namespace in the chart's values"


def register_with_kubeflow(
    packages: Sequence[Path], *, endpoint: str, namespace: str | None, remove: bool, federation: Path | None = None,
) -> None:
    """Register the compiled pipelines at `packages`, or this product's own where there are none, those with `federation`'s settings and silos.

    Raises:
        ConfigError: a package that is no compiled pipeline, an endpoint that is no address.
        AccessDenied, StoreUnavailable: Kubeflow refuses this account, or was not reached.
    """
    require_address(endpoint)
    for package in packages:
        _require_pipeline(package)
    known = load_federation(federation) if federation is not None else None
    defaults = offered_form_of(known, source=str(federation)) if known is not None else {}
    from fedhelp_pipelines.register import Registry, own_packages  # kfp takes seconds to import: after what is found wrong without it
    from fedhelp_pipelines.versions import sentence_about_kfp, sentence_about_server

    if not packages:
        warn("register", sentence_about_kfp())
    with tempfile.TemporaryDirectory() as folder, kubeflow_errors(endpoint, wish="register pipelines", advice=_ADVICE):
        registry = Registry(endpoint, namespace, token_path=os.environ.get(TOKEN_VARIABLE))
        warn("register", sentence_about_server(registry.server_version, endpoint))
        for package in packages or own_packages(Path(folder), defaults, known.silo_names if known is not None else ()):
            name = package.stem
            if remove:
                print(f"pipeline {name}: {'removed' if registry.remove(name) else 'was not there'}")
                continue
            registered = registry.register(package, name)
            print(f"pipeline {name}: version {registered.version} {'registered' if registered.new else 'is there already'}")
            if not registered.described:
                warn("register", f"Kubeflow's list keeps the description that pipeline {name} was first given; the version's own is complete."
                     " To replace it, take the pipeline out with its versions (--remove) and register it again")


def _require_pipeline(package: Path) -> None:
    import yaml

    try:
        documents = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{package}: cannot be read as YAML ({e}); give what `fedhelp compile` writes") from e
    if not documents or not isinstance(documents[0], dict) or "pipelineInfo" not in documents[0]:
        raise ConfigError(f"{package}: is no compiled pipeline (no pipelineInfo); give what `fedhelp compile` writes")
