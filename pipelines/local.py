"""Run `fedhelp-compact` on this machine through kfp's own local runner. Called by `fedhelp run --through-kfp`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import local

from fedhelp_pipelines.graphs import fedhelp_compact


def run_compact(arguments: Mapping[str, Any], pipeline_root: Path) -> str:
    """Run the pipeline with `arguments` for its form; returns what promotion decided. Artifacts lie under `pipeline_root`.

    Raises:
        RuntimeError: a task failed; its own message was printed above.
    """
    # The local runner starts tasks with "python3": make that the interpreter that FedHelp is installed in.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    warnings.filterwarnings("ignore", message="You may be attemping to run a task", category=RuntimeWarning)
    logging.getLogger().setLevel(logging.WARNING)
    # It cannot follow a condition on a named output: node `hospitals left out` does not run here, and the report says who was left out.
    logging.getLogger().addFilter(lambda record: not record.getMessage().startswith("Could not resolve"))
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(pipeline_root), raise_on_error=True)
    task = fedhelp_compact(**arguments)
    return str(task.output)
