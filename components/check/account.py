"""The tokens by which hospitals know the hub: whose the run's own is, and when the others end.

The account is looked at where a hospital in this cluster knows the hub by it: the form's field for it is blank by default. Called by check.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

from fedhelp_components.session import say
from fedhelp_core import telemetry
from fedhelp_core.config.federation import Federation

ACCOUNT_VARIABLE = "FEDHELP_SERVICE_ACCOUNT"
"""The account of runs, as the hub's chart names it; unset: nobody knows which it should be."""
_DAY, _SOON = 86_400.0, 7.0  # seconds; days, for a hospital's IT answers within a week
TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def account_problems() -> list[str]:
    """One sentence where this pod's account is another than the chart's; [] where it is the same, or not known."""
    wanted = os.environ.get(ACCOUNT_VARIABLE)
    account = _account_of(TOKEN)
    if not wanted or account is None or account == wanted:
        return []
    return [f"the run's form: field Service account: {wanted} expected, which the hospitals were told of, but this run has {account!r};"
            " start it again with that account"]


def _account_of(token: Path) -> str | None:
    """The account's name, from the token's own text: nothing is decided by it, so that nobody has to sign it."""
    try:
        subject = str(_claims(token.read_text(encoding="ascii")).get("sub"))
    except (OSError, ValueError):
        return None
    return subject.rpartition(":")[2] if subject.startswith("system:serviceaccount:") else None


def say_which_tokens_end(config: Federation) -> None:
    """A line for each hospital whose cluster will not know the hub much longer; Prometheus is told of all. Nothing is decided by it."""
    known = False
    for silo in config.silos:
        if not (context := getattr(silo.dispatch, "context", None)):
            continue
        from fedhelp_dispatch.cluster import token_of  # with kubernetes, which hospitals that work as processes never need

        when = _claims(token_of(context)).get("exp")
        if not isinstance(when, int):
            continue
        known = True
        telemetry.token_ends(config.name, silo.name, when)
        days = (when - time.time()) / _DAY
        if days < _SOON:
            say(f"silo {silo.name}: the hub's token for context {context!r} {'ends in' if days > 0 else 'ended'} {abs(days):.1f} days"
                f"{'' if days > 0 else ' ago'}; ask the hospital for a new one")
    if known:
        telemetry.keep_if_configured(telemetry.CHECK, config.name)


def _claims(token: str) -> dict[str, Any]:
    """What a JSON web token says of itself; {} of any other."""
    try:
        payload = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}
