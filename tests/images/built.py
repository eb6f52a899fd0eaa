"""The product's images, built for a test session, and containers of them under the settings that a hospital's cluster enforces."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.images.torch_index import torch_index

ROOT = Path(__file__).resolve().parents[2]
RESTRICTED = ["--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp:rw,nosuid,nodev,size=1g,mode=1777"]


@functools.cache
def built_image(name: str, *, repository: str = "fedhelp-test", version: str | None = None) -> str:
    """The tag of image `hub` or `silo`, built now from this checkout; what has not changed comes from Docker's cache.

    On $BASE_IMAGE, else on the stand-in that tests/cluster/base_image.sh makes; the silo image is the one with PyTorch's CPU build,
    from $TORCH_INDEX or, without one, from `torch_index`.

    Raises:
        RuntimeError: with the build's last lines.
    """
    base = os.environ.get("BASE_IMAGE") or _run(str(ROOT / "tests/cluster/base_image.sh")).splitlines()[-1]
    settings = {"BASE_IMAGE": base, "CUDA": "no", "IMAGE_REPOSITORY": repository} | ({"VERSION": version} if version else {})
    if name == "hub":
        return _build(name, settings)
    python = _run("docker", "run", "--rm", "--network=none", base, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    with torch_index(python) as index:
        direct = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1")))
        options = f"{os.environ.get('DOCKER_BUILD_OPTIONS', '')} --network=host"
        return _build(name, settings | {"TORCH_INDEX": index, "NO_PROXY": direct, "no_proxy": direct, "DOCKER_BUILD_OPTIONS": options})


def _build(name: str, settings: Mapping[str, str]) -> str:
    return _run(str(ROOT / "images/build.sh"), name, **settings).splitlines()[-1].rpartition(": ")[0]


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
