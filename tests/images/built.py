"""The product's images, built for a test session, and containers of them under the settings that a hospital's cluster enforces."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESTRICTED = ["--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp:rw,nosuid,nodev,size=1g,mode=1777"]


@functools.cache
def built_image(name: str) -> str:
    """The tag of image `hub` or `silo`, built now from this checkout; what has not changed comes from Docker's cache.

    On $BASE_IMAGE, else on the stand-in that tests/cluster/base_image.sh makes; the silo image is the one without NVIDIA's libraries.

    Raises:
        RuntimeError: with the build's last lines.
    """
    base = os.environ.get("BASE_IMAGE") or _run(str(ROOT / "tests/cluster/base_image.sh")).splitlines()[-1]
    output = _run(str(ROOT / "images/build.sh"), name, BASE_IMAGE=base, CUDA="no", IMAGE_REPOSITORY="fedhelp-test")
    return output.splitlines()[-1].rpartition(": ")[0]


def contained(
    image: str, *command: str, mounts: Mapping[Path, str] | None = None, network: str = "none", environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`command` in a container of `image`; `mounts`: folder here -> 'folder there' or 'folder there:ro'.

    Its user is a number that the image does not know, as on OpenShift.
    """
    options = ["--user", f"{os.getuid() or 23456}:0", "--network", network]
    for here, there in (mounts or {}).items():
        options += ["--volume", f"{here}:{there}"]
    for variable, value in (environment or {}).items():
        options += ["--env", f"{variable}={value}"]
    return subprocess.run(["docker", "run", *RESTRICTED, *options, image, *command], capture_output=True, text=True, timeout=280)


def _run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout.strip()
