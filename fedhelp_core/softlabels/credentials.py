"""What a teacher's server wants to see before it answers, read from the environment or a mounted file. Called by `openinference`.

The secret never enters a config object, an error or a log: messages name the place it comes from, and `redacted` takes it
out of whatever a server echoes.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

from fedhelp_core.config.teachers import TeacherAuth
from fedhelp_core.errors import AccessDenied, ConfigError

_TELLTALE = 8  # letters of a secret in a row that are no accident
_LONGEST = 64 * 1024  # bytes; service account tokens have some 1000


class Credentials:
    """The Authorization header of one teacher; a file is read anew every time, since mounted tokens are rotated."""

    def __init__(self, auth: TeacherAuth, teacher: str) -> None:
        self._auth = auth
        self._teacher = teacher
        self._seen: set[str] = set()

    def header(self) -> str:
        """The value of `Authorization`.

        Raises:
            AccessDenied: the secret is missing or empty.
            ConfigError: it is no secret that a header can carry.
        """
        secret = self._secret()
        if self._auth.kind == "bearer":
            self._seen.add(secret)
            return f"Bearer {secret}"
        pair = secret if self._auth.username is None else f"{self._auth.username}:{secret}"
        if ":" not in pair:
            raise ConfigError(f"{self._where}: expected user:password, or the user name as auth.username beside it")
        encoded = base64.b64encode(pair.encode()).decode()
        self._seen |= {encoded, pair, pair.partition(":")[2]}
        return f"Basic {encoded}"

    def redacted(self, text: str) -> str:
        """`text` without the secret and without parts of it, in case a server repeats what it was sent. To be called before anything is cut."""
        return redacted(text, self._seen)

    @property
    def _where(self) -> str:
        place = f"${self._auth.env}" if self._auth.env is not None else str(self._auth.file)
        return f"teacher {self._teacher!r}: the secret in {place}"

    def _secret(self) -> str:
        if self._auth.env is not None:
            text = os.environ.get(self._auth.env, "")
        else:
            assert self._auth.file is not None
            text = self._read(self._auth.file)
        secret = text.strip()
        if not secret:
            raise AccessDenied(f"{self._where} is missing or empty; set it from a Secret (docs/teachers.md)")
        plain = secret.isascii() or self._auth.kind == "basic"  # Base64 carries every letter
        if not plain or not secret.isprintable() or len(secret) > _LONGEST:
            raise ConfigError(f"{self._where} is no single line of printable text, so no header can carry it; look at how it was stored")
        return secret

    def _read(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                return file.read(_LONGEST + 1).decode()
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
            raise AccessDenied(f"{self._where} cannot be read ({reason}); mount the Secret readable for this user") from None


def redacted(text: str, secrets: Iterable[str]) -> str:
    """`text` with every run of eight letters or more that a secret has replaced, in whichever of the usual codings; of a shorter one the whole."""
    hidden = bytearray(len(text))
    folded = text.lower() if len(text.lower()) == len(text) else text
    for spelling in {spelling.lower() for secret in secrets for spelling in _spellings(secret)}:
        length = min(len(spelling), _TELLTALE)
        parts = {spelling[start : start + length] for start in range(len(spelling) - length + 1)}
        for start in range(len(folded) - length + 1):
            if folded[start : start + length] in parts:
                hidden[start : start + length] = b"\1" * length
    return re.sub("\0+", "[secret]", "".join("\0" if hide else c for c, hide in zip(text.replace("\0", " "), hidden, strict=True)))


def _spellings(secret: str) -> Iterator[str]:
    """The ways in which a secret comes back: as it is, escaped for JSON, Python, URLs or HTML, in Base64 wherever it began, in hexadecimal."""
    raw = secret.encode()
    yield from (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], repr(raw)[2:-1], quote(secret), quote(secret, safe=""), quote_plus(secret))
    yield from (html.escape(secret), raw.hex(), secret[::-1])
    for before in range(3):
        begins = -(-before * 4 // 3)  # letters that the bytes before have a part in
        coded = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")[begins:]
        yield from (coded, coded.replace("+", "-").replace("/", "_"))
