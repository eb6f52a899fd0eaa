"""Which Kubeflow Pipelines FedHelp's pipelines were tried with, and one sentence where kfp here or the server is another one.

Called by `fedhelp compile`, `register` and `submit`, which say it and go on. Imports the standard library only.
"""

from __future__ import annotations

import re
from importlib.metadata import version

OLDEST, NEWEST = (2, 15), (2, 17)
"""Before 2.15 a task's variables could not come from a Secret that may be absent, which all tasks have. Runs on a live Kubeflow were
those of 2.17; tests compile with the newest release of each version between (tests/pipelines/test_versions.py)."""


def sentence_about_kfp() -> str:
    """'' where the installed kfp is one of them."""
    return _sentence("kfp", version("kfp"), "compiles here", "compare what it compiles, or install kfp 2.17")


def sentence_about_server(said: str, endpoint: str) -> str:
    """'' where `said`, the version that the server at `endpoint` names, is one of them, or no version."""
    return _sentence("Kubeflow Pipelines", said, f"answers at {endpoint}", "try pipeline fedhelp-compact there first")


def _sentence(what: str, said: str, does: str, advice: str) -> str:
    numbers = re.match(r"v?(\d+)\.(\d+)", said)
    if numbers is None:
        return ""
    found = (int(numbers[1]), int(numbers[2]))
    if OLDEST <= found <= NEWEST:
        return ""
    how = f"newer than {_dotted(NEWEST)}, the newest" if found > NEWEST else f"older than {_dotted(OLDEST)}, the oldest"
    return f"{what} {said} {does}, which is {how} that FedHelp was tried with; {advice}"


def _dotted(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"
