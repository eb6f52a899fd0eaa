"""The MLflow server (or SQLite file) of a federation: its address, a client for it, and its errors as ours. Used by the other modules here."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedhelp_core.answers import untrusted
from fedhelp_core.config.federation import Federation
from fedhelp_core.disk import Place, require_locks
from fedhelp_core.errors import AccessDenied, ConfigError, FedHelpError, NotFound, PermanentError, StorageFull, StoreUnavailable
from fedhelp_core.printable import first_line, without_passwords
from fedhelp_core.proxies import tell_libraries

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
        ConfigError: neither is set, and the store is a bucket, where SQLite cannot live, or a folder whose name MLflow misreads.
    """
    uri = federation.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if uri:
        return uri
    folder = federation.store.folder
    if folder is None:
        raise ConfigError(
            f"tracking.uri: missing, and store {federation.store.url!r} is no folder where MLflow could keep SQLite; "
            "set tracking.uri or $MLFLOW_TRACKING_URI to your MLflow server")
    uri = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    sqlite_path(uri)
    return uri


def is_server(uri: str) -> bool:
    """Whether MLflow has pages there, for people."""
    return uri.startswith(("http://", "https://"))


def require_usable(uri: str) -> None:
    """Nothing where MLflow may be at `uri`, as far as can be told without importing it: a SQLite file that is there is looked into.

    Raises:
        ConfigError: it is a folder or no SQLite file, or its file system has no locks.
    """
    path = sqlite_path(uri)
    if path is None:
        return
    if path.parent.is_dir():
        require_locks(path.parent, _DATABASE)
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            begin = file.read(len(_SQLITE))
    except OSError as e:
        raise ConfigError(f"tracking.uri: {path} cannot be read ({e.strerror}); a SQLite file expected") from e
    if begin not in (b"", _SQLITE):
        raise ConfigError(f"tracking.uri: {path} is no SQLite file; name another, or restore it from a backup")


def prepare() -> None:
    """Quiet settings for mlflow, before it is imported: it reads some at import, some at each call."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # where somebody else has imported it before


def import_ahead() -> None:
    """Import what logging a model takes, which is seconds. For a thread of a process whose main thread waits for something else."""
    prepare()
    with quiet():
        import mlflow.pyfunc  # noqa: F401


def client_of(uri: str) -> Any:
    """MLflow's client; makes the database of a SQLite URI that is not there."""
    require_usable(uri)  # mlflow itself tries for minutes to open a folder
    prepare()
    from mlflow import MlflowClient

    path = sqlite_path(uri)
    if path is not None:
        _make_sqlite_whole(path)
    else:
        tell_libraries(uri)
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
    """The database's file; None for a server.

    Raises:
        ConfigError: MLflow would write to another path than this one.
    """
    if not uri.startswith("sqlite:///"):
        return None
    path = Path(uri.removeprefix("sqlite:///")).absolute()
    if found := _IN_URLS.search(str(path)):
        raise ConfigError(
            f"tracking.uri: MLflow cannot keep files below {path.parent}, since it reads {found[0]!r} in a path as part of a URL; name a database"
            " elsewhere (tracking.uri: sqlite:////folder/mlflow.db), or rename the folder")
    return path


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
    """Without the warnings of mlflow and torch.export about themselves. For one thread at a time: warning filters belong to the process."""
    with warnings.catch_warnings(record=True):  # recorded and dropped: mlflow switches some on again that are ignored
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
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


_DATABASE = Place({ConfigError: "the file system has no locks ({why}), which MLflow's SQLite file needs; name a database elsewhere as tracking.uri"})
_SQLITE = b"SQLite format 3\0"  # how every database file begins but an empty one
_IN_URLS = re.compile("[%?]")  # what SQLAlchemy and MLflow unquote, cut off or both, each at other places
_SCHEMA = re.compile(r"out-of-date database schema \(found version (\w+), but expected (\w+)\)")  # of a newer one too
_NO_DATABASE = ("file is not a database", "database disk image is malformed", "file is encrypted")
_MISSING = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_DENIED = {"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
_LATER = {  # INTERNAL_ERROR: what mlflow calls a server that it could not reach
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"}
_TRANSPORT = {"sqlalchemy", "sqlite3", "requests", "urllib3", "boto3", "botocore", "s3transfer"}  # under mlflow; imported by it alone


def error_for(error: Exception, uri: str) -> FedHelpError | None:
    """Our error for one of mlflow's; None if it is none of those that we know."""
    from mlflow.exceptions import MlflowException

    where, said = f"MLflow at {without_passwords(uri)}", without_passwords(first_line(error, 300))
    package = type(error).__module__.split(".")[0]
    if (broken := _broken_database(uri, str(error))) is not None:
        return PermanentError(f"{where}: {broken}")
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
    if isinstance(error, OSError) and isinstance(without_locks := _DATABASE.error(error, without_passwords(uri)), ConfigError):
        return without_locks
    if isinstance(error, PermissionError):
        return AccessDenied(f"{where}: {said}; check the folder's permissions")
    if (why := untrusted(error, bundle="REQUESTS_CA_BUNDLE")) is not None:
        return ConfigError(f"{where}: {why}")
    if isinstance(error, OSError) or package in _TRANSPORT:
        return StoreUnavailable(f"{where}: was not reached or cannot answer now ({type(error).__name__}: {said}); check that it runs, then try again")
    if package == "torch":
        return PermanentError(f"the model cannot be exported by torch.export ({type(error).__name__}: {said}); write its forward so that it can")
    return None


def _broken_database(uri: str, said: str) -> str | None:
    """What is wrong with a SQLite file or a database's tables for good; None where trying again may help."""
    if schema := _SCHEMA.search(said):
        return (f"the database's tables are of another version of MLflow (schema {schema[1]}, this client's is {schema[2]}); open it with the MLflow"
                f" that wrote it, or if it is older, back it up and run: mlflow db upgrade {shlex.quote(without_passwords(uri))}")
    file = sqlite_path(uri)
    if file is not None and (found := next((what for what in _NO_DATABASE if what in said), None)) is not None:
        return f"{file} is no SQLite database ({found}); correct tracking.uri, or restore the file from a backup"
    if file is not None and "locking protocol" in said:
        return f"the file system of {file} has no locks that SQLite can use ({said}); name a database elsewhere as tracking.uri"
    return None
