"""`fedhelp serve`: the model in use answers over HTTP inside the hospital. Called by main.py.

fedhelp_core/serving does the work. Nothing here needs the hub.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fedhelp_core import telemetry
from fedhelp_core.config.silo import load_silo
from fedhelp_core.printable import printable
from fedhelp_core.serving.app import Limits
from fedhelp_core.serving.in_use import InUse
from fedhelp_core.serving.server import Door, serve
from fedhelp_core.silo.work import device_for


def serve_model(silo: Path, *, name: str | None, device: str, door: Door, limits: Limits) -> None:
    """Answer until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: silo.yaml, the address or a file cannot be used.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    config = load_silo(silo)
    telemetry.serve_if_configured()
    serve(InUse(config, name, device_for(device)), door, limits, lambda sentence: print(printable(sentence), flush=True))
