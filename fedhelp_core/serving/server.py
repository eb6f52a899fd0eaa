"""The process of `fedhelp serve`: a socket, TLS, signals. Called by the command.

SIGTERM stops taking connections and lets the answers that are being made go out. kill -9 loses what was asked at that moment and nothing else:
which model answers is in the state folder.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from fedhelp_core.errors import ConfigError
from fedhelp_core.processes import keep_freed_memory
from fedhelp_core.serving.app import Limits, Serving, application
from fedhelp_core.serving.in_use import InUse

_TICKS = 10  # of uvicorn, a tenth of a second each, between looks at the certificate


@dataclass(frozen=True)
class Door:
    """Where and to whom the server answers."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0: the system chooses."""
    token_file: Path | None = None
    """One bearer token a line."""
    open_to_all: bool = False
    """Whether other machines may ask without a token."""
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def require_guarded(self) -> None:
        """Nothing where no stranger can ask.

        Raises:
            ConfigError: other machines could, a file cannot be read, or TLS lacks one of its files.
        """
        if self.token_file is None and not self.open_to_all and not _is_loopback(self.host):
            raise ConfigError(f"--host {self.host}: without --token-file every machine that reaches this one could ask; give a file with a token,"
                              " or --no-token where a network policy says who may")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key: both or none expected")
        if self.token_file is not None:
            try:
                if not self.token_file.read_bytes().strip():
                    raise ConfigError(f"--token-file {self.token_file}: is empty; write a token into it, one a line")
            except OSError as e:
                raise ConfigError(f"--token-file {self.token_file}: cannot be read ({e.strerror})") from None


def serve(in_use: InUse, door: Door, limits: Limits, say: Callable[[str], None]) -> None:
    """Answer until SIGTERM or Ctrl-C. `say`: takes the sentence that says where.

    Raises:
        ConfigError: the address is taken, or a file cannot be used.
    """
    door.require_guarded()
    keep_freed_memory()
    in_use.look()
    with _bound(door) as listening:
        serving = Serving(in_use, limits, door.token_file)
        config = uvicorn.Config(
            application(serving), log_level="critical", access_log=False, server_header=False, lifespan="on", ws="none", http="h11",
            ssl_certfile=door.tls_cert, ssl_keyfile=door.tls_key, timeout_graceful_shutdown=math.ceil(limits.seconds))
        try:
            config.load()
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(f"--tls-cert {door.tls_cert}, --tls-key {door.tls_key}: cannot be used ({e}); PEM files of one pair expected") from None
        address, port = listening.getsockname()[:2]
        host = f"[{address}]" if ":" in address else address
        answers = in_use.loaded.adopted.contract.title + " answers" if in_use.loaded else f"no model answers yet ({in_use.problem})"
        say(f"{answers} at {'http' if door.tls_cert is None else 'https'}://{host}:{port}/v2")
        try:
            _Server(config, serving, door).run(sockets=[listening])
        finally:
            serving.close()


class _Server(uvicorn.Server):
    """It says that it is not ready any more as soon as it is told to end, and takes a renewed certificate."""

    def __init__(self, config: uvicorn.Config, serving: Serving, door: Door) -> None:
        super().__init__(config)
        self._serving = serving
        self._pair = [str(path) for path in (door.tls_cert, door.tls_key) if path is not None]
        self._read = self._written()

    def handle_exit(self, sig: int, frame: object) -> None:
        """Of SIGTERM and Ctrl-C."""
        self._serving.draining = True
        super().handle_exit(sig, frame)  # type: ignore[arg-type]

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        written = self._written() if counter % _TICKS == 0 else self._read
        if written != self._read and self.config.ssl is not None:
            with contextlib.suppress(OSError, ssl.SSLError):  # one of the pair was written, the other was not yet
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._pair)
                self.config.ssl.load_cert_chain(*self._pair)
                self._read = written
        return await super().on_tick(counter)

    def _written(self) -> list[int]:
        with contextlib.suppress(OSError):
            return [os.stat(path).st_mtime_ns for path in self._pair]
        return []


def _bound(door: Door) -> contextlib.closing[socket.socket]:
    try:
        return contextlib.closing(socket.create_server(
            (door.host, door.port), family=socket.AF_INET6 if ":" in door.host else socket.AF_INET, backlog=1024))
    except (OSError, OverflowError) as e:
        raise ConfigError(f"--host {door.host} --port {door.port}: cannot be served on ({e}); choose a free port of this machine") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
