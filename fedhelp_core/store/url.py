"""What a store's URL may be: the one rule, for the config that is read and the store that is opened. Pure; called by config and by open.py."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/*")


def folder_of(url: str) -> Path | None:
    """The folder that a plain path or file:///folder names; None for s3://bucket/prefix.

    Raises:
        ValueError: `url` is none of these; the message says what was expected.
    """
    scheme = _SCHEME.match(url)
    if scheme is None and url.strip():
        return Path(url)
    if scheme is not None and scheme[0] == "s3://":
        return None
    if scheme is not None and scheme[0].startswith("file://"):
        parts = urlsplit(url)
        if cut := next((sign for sign in "?#" if sign in url), None):
            raise ValueError(f"a file url holds {cut!r} as {quote(cut)}, or else what follows would be cut off, got {url!r}")
        if parts.netloc in ("", "localhost") and parts.path:
            return Path(unquote(parts.path))
        raise ValueError(f"a file url is file:///absolute/folder, with three slashes, got {url!r}")
    raise ValueError(f"a folder, file:///folder or s3://bucket/prefix expected, got {url!r}")
