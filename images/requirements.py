"""Write what the images install, from uv.lock: every version pinned, every file's hash beside it. Needs uv; called by `make requirements`.

    python images/requirements.py [--check]

`--check` writes nothing and ends with 1 where a list is not in step with the lock; tests/images holds the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NOT_INSTALLED = ("triton",)
"""torch.compile's code generator for GPUs, 1 GB installed: PyTorch imports without it, and FedHelp runs eagerly."""
_FOR_CUDA = ("nvidia-", "cuda-")  # packages that PyTorch's CPU build does not ask for
_HEADER = "# Written by images/requirements.py from uv.lock; change pyproject.toml, then: uv lock && make requirements\n"


def lists() -> dict[Path, str]:
    """Path of each list -> what it must hold."""
    torch = _export("--only-group", "torch")
    cpu = [entry for entry in torch if not entry.startswith(("torch==", *_FOR_CUDA))]
    silo = _export("--only-group", "silo")
    return {
        FOLDER / "build.txt": _text(_export("--only-group", "image-build")),
        FOLDER / "hub" / "requirements.txt": _text(_export("--only-group", "hub")),
        FOLDER / "silo" / "torch.txt": _text(torch),
        FOLDER / "silo" / "torch-cpu.txt": _text(cpu),
        FOLDER / "silo" / "requirements.txt": _text([entry for entry in silo if entry not in torch]),
    }


def out_of_step() -> list[Path]:
    """The lists that differ from the lock."""
    return [path for path, text in lists().items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def _export(*selection: str) -> list[str]:
    """One entry per pinned package, its hashes included."""
    uv = shutil.which("uv") or str(FOLDER.parent / ".uv" / "bin" / "uv")
    command = [uv, "export", "--frozen", "--no-emit-project", "--no-header", "--no-annotate", "--quiet", "--format", "requirements-txt", *selection]
    for package in NOT_INSTALLED:
        command += ["--no-emit-package", package]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"requirements.py: error: uv export {' '.join(selection)} failed: {done.stderr.strip()}")
    return done.stdout.replace("\\\n", "\\\0").splitlines()


def _text(entries: list[str]) -> str:
    return _HEADER + "".join(entry.replace("\0", "\n") + "\n" for entry in entries)


def main() -> int:
    """Write or check the lists."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a list is not in step with uv.lock")
    if parser.parse_args().check:
        wrong = [str(path.relative_to(FOLDER.parent)) for path in out_of_step()]
        if wrong:
            print(f"not in step with uv.lock: {', '.join(wrong)}; run: make requirements", file=sys.stderr)
        return 1 if wrong else 0
    for path, text in lists().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(FOLDER.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
