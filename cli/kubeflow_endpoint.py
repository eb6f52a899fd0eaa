"""The address of Kubeflow Pipelines, and what goes wrong there, in sentences. Called by register.py and submit.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from fedhelp_core.answers import untrusted
from fedhelp_core.errors import AccessDenied, ConfigError, PermanentError, StoreUnavailable
from fedhelp_core.printable import one_line

_BEHIND_A_LOGIN = "give an address behind it, such as http://localhost:8888 with: kubectl port-forward -n kubeflow service/ml-pipeline 8888:8888"


def require_address(endpoint: str, *, option: str = "--endpoint") -> None:
    """Nothing where `endpoint`, given as `option`, is an http or https address.

    Raises:
        ConfigError: it is not.
    """
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        usable = False
    if not usable:
        raise ConfigError(f"{option}: an address such as http://localhost:8888 expected, with http:// or https://, got {endpoint!r}")


@contextmanager
def kubeflow_errors(endpoint: str, *, wish: str, advice: str) -> Iterator[None]:
    """Errors of kfp's client as errors of our own; `wish` is what was asked for, `advice` what helps an account without rights.

    Raises:
        AccessDenied, StoreUnavailable, PermanentError: Kubeflow refuses this account, cannot answer now, refuses what was asked for.
    """
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    from fedhelp_pipelines.client import NotKubeflow

    where = f"Kubeflow endpoint {endpoint}"
    try:
        yield
    except NotKubeflow as e:
        raise AccessDenied(
            f"{where}: {e} answers instead of Kubeflow Pipelines: the way there is through a login; {_BEHIND_A_LOGIN}") from e
    except ApiException as e:
        said = one_line(e.body or e.reason)
        if not e.status:  # no answer: TLS
            if (why := untrusted(e.reason, bundle="SSL_CERT_FILE")) is not None:
                raise ConfigError(f"{where}: {why}") from e
            raise StoreUnavailable(f"{where}: not reached ({said}); check --endpoint") from e
        if e.status in (401, 403):
            raise AccessDenied(f"{where}: does not let this account {wish} (HTTP {e.status}: {said}); {advice}, or {_BEHIND_A_LOGIN}") from e
        if e.status >= 500 or e.status == 429:
            raise StoreUnavailable(f"{where}: cannot answer now (HTTP {e.status}: {said}); try again later") from e
        raise PermanentError(f"{where}: refused to {wish} (HTTP {e.status}: {said})") from e
    except (HTTPError, OSError) as e:
        raise StoreUnavailable(f"{where}: not reached ({_reason(e)}); check --endpoint, or port-forward ml-pipeline") from e
    except (ValueError, TypeError, AttributeError, RuntimeError) as e:  # kfp's client itself, or an answer that is not Kubeflow's
        raise PermanentError(f"{where}: kfp's client could not {wish} ({type(e).__name__}: {e}); is Kubeflow Pipelines what answers there?") from e


def _reason(error: BaseException) -> str:
    """The innermost cause in the system's own words, such as 'Connection refused'."""
    causes = (getattr(error, "reason", None), error.__cause__)
    inner = next((cause for cause in causes if isinstance(cause, BaseException)), None)
    if inner is not None:
        return _reason(inner)
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
