"""What a teacher's server wants to see before it answers, read from the environment or a mounted file. Called by `openinference`.

The secret never enters a config object, an error or a log: messages name the place it comes from, and `redacted` takes it
out of whatever a server echoes.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from fedhelp_core.config.teachers import TeacherAuth
from fedhelp_core.errors import AccessDenied, ConfigError

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
        """`text` without the secret, in case a server repeats what it was sent."""
        for secret in sorted(self._seen, key=len, reverse=True):
            text = text.replace(secret, "[secret]")
        return text

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
