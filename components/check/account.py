"""Whether a run has the account that the hospitals were told of: the form's field for it is blank by default.

Called by check where a hospital in this cluster knows the hub by that account.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

ACCOUNT_VARIABLE = "FEDHELP_SERVICE_ACCOUNT"
"""The account of runs, as the hub's chart names it; unset: nobody knows which it should be."""
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
        payload = token.read_text(encoding="ascii").split(".")[1]
        subject = str(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"])
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None
    return subject.rpartition(":")[2] if subject.startswith("system:serviceaccount:") else None
