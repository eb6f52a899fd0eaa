"""What an API server's refusal means for a silo, and what to ask its hospital for. Pure."""

from __future__ import annotations

from fedhelp_core.errors import AccessDenied, ConfigError, NotFound, PermanentError
from fedhelp_dispatch.job import TEMPLATE_NAME
from fedhelp_dispatch.reading import over_quota

_CHART = "chart fedhelp-silo"


class ApiRefusal(Exception):
    """The server answered, and said no. Never leaves dispatch: `refusal_error` turns it into a sentence."""

    def __init__(self, status: int, message: str, cluster: str) -> None:
        super().__init__(f"{cluster}: {status} {message}")
        self.status = status
        self.message = message
        self.cluster = cluster


ASK_HOSPITAL = f"ask the hospital to install {_CHART} there (it brings the Role and RoleBinding for the hub's account), or correct dispatch.namespace"


def refusal_error(refusal: ApiRefusal, *, doing: str, namespace: str, ask: str = ASK_HOSPITAL) -> PermanentError:
    """The error for people; `doing` is what was tried, e.g. 'create Jobs'; `ask` is what whoever lacks the rights should do."""
    said = " ".join(refusal.message.split())[:500]
    where = f"namespace {namespace!r} of {refusal.cluster}"
    if refusal.status == 401:
        return AccessDenied(
            f"{refusal.cluster}: the API server does not accept the hub's credentials (401 Unauthorized): the token has expired, or is another"
            " cluster's; ask the hospital for a new token or kubeconfig")
    if "ValidatingAdmissionPolicy" in said or "admission webhook" in said:
        return AccessDenied(
            f"{where}: the hospital's admission policy refused it ({said}); ask the hospital whether its {_CHART} and the CronJob"
            f" {TEMPLATE_NAME!r} are of one version")
    if "being terminated" in said:
        return NotFound(f"{where}: the namespace is being deleted; ask the hospital to install {_CHART} again")
    if refusal.status == 403:
        return AccessDenied(
            f"{where}: the hub's account may not {doing} ({said}); {ask}")
    if refusal.status == 404:
        return _missing(refusal, where, namespace)
    return ConfigError(f"{where}: the API server refused to {doing} ({refusal.status}: {said}); ask the hospital to look at its {_CHART}")


def _missing(refusal: ApiRefusal, where: str, namespace: str) -> PermanentError:
    if "namespaces" in refusal.message and namespace in refusal.message:
        return NotFound(f"{where}: no such namespace; correct dispatch.namespace, or ask the hospital to install {_CHART} there")
    if "could not find the requested resource" in refusal.message or "page not found" in refusal.message:
        return NotFound(f"{refusal.cluster}: the API server does not know this kind of object; is dispatch.context the right cluster?")
    return NotFound(
        f"{where}: no CronJob {TEMPLATE_NAME!r}, the hospital's Job template; correct dispatch.namespace, or ask the hospital to install {_CHART}")


def quota_exceeded(refusal: ApiRefusal) -> bool:
    """Whether only a quota is in the way: waiting, no fault."""
    return refusal.status == 403 and over_quota(refusal.message)
