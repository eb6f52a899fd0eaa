"""What an HTTP server's answer says about the server itself: a web page where an API was expected, a clock that is off, a certificate
that is not trusted.

Called by the store, MLflow, Kubeflow and the doctor, so that each of these faults has the same words everywhere. Pure but for the clock.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from fedhelp_core.printable import one_line

LARGEST_SKEW = 300.0  # seconds; S3 servers refuse signatures of clocks further off than 5 to 15 minutes
_REDIRECTS = (301, 302, 303, 307, 308)


def page_instead(status: int, headers: Mapping[str, str], body: bytes = b"") -> str | None:
    """What answers, where that is a web page or the way to one (a login page, mostly); None for what may be an API's answer.

    A gateway's page about a server that is away (5xx, 429) is no sign of a wrong address.
    """
    by_name = {name.lower(): value for name, value in headers.items()}
    if status in _REDIRECTS and (place := by_name.get("location")) and b"<Error>" not in body:  # S3 says so where a bucket is elsewhere
        parts = urlsplit(place)
        return f"a redirect to {one_line(f'{parts.scheme}://{parts.netloc}{parts.path}' if parts.netloc else parts.path)} (HTTP {status})"
    if status < 500 and status != 429 and body[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):  # headers are often wrong
        title = re.search(rb"<title[^>]*>([^<]*)", body[:4096], re.IGNORECASE)
        named = f" titled {one_line(title[1].decode(errors='replace'))!r}" if title else ""
        return f"a web page{named} (HTTP {status})"
    return None


def skew_of(date: str | None) -> float | None:
    """Seconds that this machine's clock is ahead of the server whose Date header is `date`; None where that says no time."""
    try:
        return None if not date else time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None


def clock_is_off(where: str, skew: float | None) -> str:
    """The sentence for a clock that is `skew` seconds ahead of the server `where`; None, or too little: by how much is not known."""
    known = skew is not None and abs(skew) > LARGEST_SKEW
    much = f"is {abs(skew or 0):.0f} s {'ahead of' if (skew or 0) > 0 else 'behind'}" if known else "differs from that of"
    return (f"this node's clock {much} {where}, at most {LARGEST_SKEW:.0f} s expected: requests are refused as badly signed; set the node's time"
            " (chrony, systemd-timesyncd)")


def untrusted(error: object, *, bundle: str) -> str | None:
    """Why the certificate of a server is not trusted, and what to do; None where `error` says nothing of the kind.

    `bundle`: the setting that names the authorities which the client trusts.
    """
    found = re.search(r"certificate verify failed: ([^()\\]+)", str(error))
    if found is None:
        return None
    why = found[1].strip().rstrip(",.:;'\"")
    if "expired" in why or "not yet valid" in why:
        today = time.strftime("%Y-%m-%d %H:%M %Z")
        return (f"its certificate is not trusted (certificate verify failed: {why}); this machine's clock says {today}: set that right, or have the"
                " certificate renewed")
    return f"its certificate is not trusted (certificate verify failed: {why}); name the authority that issued it in {bundle}"
