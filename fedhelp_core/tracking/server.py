"""The MLflow server (or SQLite file) of a federation: its address, a client for it, and its errors as ours. Used by the other modules here."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import AccessDenied, ConfigError, FedHelpError, NotFound, PermanentError, StorageFull, StoreUnavailable

_SETTINGS = {  # used where the operator set nothing else
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing leaves a hospital that nobody asked for
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # about 15 s; MLflow's own 7 are four minutes before anybody is told
}


def tracking_uri(federation: Federation) -> str:
    """`tracking.uri`, else $MLFLOW_TRACKING_URI, else SQLite in the store's folder.

    Raises:
        ConfigError: neither is set, and the store is a bucket, where SQLite cannot live.
    """
    uri = federation.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if uri:
        return uri
    folder = federation.store.folder
    if folder is None:
        raise ConfigError(
            f"tracking.uri: missing, and store {federation.store.url!r} is no folder where MLflow could keep SQLite; "
            "set tracking.uri or $MLFLOW_TRACKING_URI to your MLflow server")
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def prepare() -> None:
    """Quiet settings for mlflow, before it is imported: it reads some at import, some at each call."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # where somebody else has imported it before


def client_of(uri: str) -> Any:
    """MLflow's client; makes the database of a SQLite URI that is not there."""
    prepare()
    from mlflow import MlflowClient

    path = sqlite_path(uri)
    if path is not None:
        _make_sqlite_whole(path)
    return MlflowClient(uri)


def _make_sqlite_whole(path: Path) -> None:
    """A new database gets its name when its tables are there: mlflow does not go on where its migrations were killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # ends with this process, however it ends
        if not path.exists():
            from mlflow import MlflowClient

            scratch = path.with_name(f"{path.name}.new")
            for left in path.parent.glob(f"{scratch.name}*"):  # and its journal
                left.unlink()
            MlflowClient(f"sqlite:///{scratch}").search_experiments(max_results=1)
            scratch.rename(path)
    finally:
        os.close(folder)


def sqlite_path(uri: str) -> Path | None:
    """The database's file; None for a server."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def on_server(uri: str) -> bool:
    """Whether the model at `uri` comes from an MLflow server."""
    import mlflow

    return not os.path.exists(uri) and mlflow.get_tracking_uri().startswith(("http://", "https://"))


@contextlib.contextmanager
def mlflow_at(uri: str) -> Iterator[None]:
    """mlflow's process-wide tracking URI for a while: what logs models knows no other, not even from a client that has its own.

    Setting it also sets the environment variable, which `tracking_uri` reads; both are put back.
    """
    prepare()
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # documented in its code alone: back to the environment's
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of mlflow and torch.export about themselves. For the main thread: warning filters belong to the process."""
    with warnings.catch_warnings(record=True):  # recorded and dropped: mlflow switches some on again that are ignored
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Errors of mlflow and of what it stands on, as ours."""
    try:
        yield
    except FedHelpError:
        raise
    except Exception as e:
        known = error_for(e, uri)
        if known is None:
            raise
        raise known from e


_MISSING = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_DENIED = {"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
_LATER = {  # INTERNAL_ERROR: what mlflow calls a server that it could not reach
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"}
_TRANSPORT = {"sqlalchemy", "sqlite3", "requests", "urllib3", "boto3", "botocore", "s3transfer"}  # under mlflow; imported by it alone


def error_for(error: Exception, uri: str) -> FedHelpError | None:
    """Our error for one of mlflow's; None if it is none of those that we know."""
    from mlflow.exceptions import MlflowException

    where, said = f"MLflow at {shown_uri(uri)}", shown_uri(first_line(error))
    package = type(error).__module__.split(".")[0]
    if isinstance(error, MlflowException):
        if error.error_code in _MISSING:
            return NotFound(f"{where}: {said}; check tracking.registered_model and $MLFLOW_RUN_ID, or run evaluation first")
        if error.error_code in _DENIED:
            return AccessDenied(f"{where}: refuses us ({said}); check $MLFLOW_TRACKING_USERNAME, $MLFLOW_TRACKING_PASSWORD or $MLFLOW_TRACKING_TOKEN")
        if error.error_code in _LATER:
            return StoreUnavailable(f"{where}: was not reached or cannot answer now ({said}); check that it runs, then try again")
        return PermanentError(f"{where}: refuses the request ({said}); check tracking.uri and that the server is as new as this client")
    if isinstance(error, OSError) and error.errno == 28:  # ENOSPC
        return StorageFull(f"{where}: no space left ({said}); free some, then try again")
    if isinstance(error, PermissionError):
        return AccessDenied(f"{where}: {said}; check the folder's permissions")
    if isinstance(error, OSError) or package in _TRANSPORT:
        return StoreUnavailable(f"{where}: was not reached or cannot answer now ({type(error).__name__}: {said}); check that it runs, then try again")
    if package == "torch":
        return PermanentError(f"the model cannot be exported by torch.export ({type(error).__name__}: {said}); write its forward so that it can")
    return None


def first_line(error: BaseException) -> str:
    """What a message says first; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def shown_uri(uri: str) -> str:
    """`uri` without the password that it may carry, for messages and records."""
    return re.sub(r"://[^/@\s]+@", "://", uri)
