"""What a node changes on its machine beyond processes, made and removed: cgroups, mounts, programs that fail in one sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.cluster.processes import wait_for

CGROUPS = Path("/sys/fs/cgroup")


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `command` and return its output; RuntimeError with its words when it fails and `check` is set."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, **options)
    except FileNotFoundError as error:
        if check:
            raise RuntimeError(f"{command[0]} is not installed; run {Path(__file__).with_name('install_debian.sh')}") from error
        return subprocess.CompletedProcess(command, 127, "", "")
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done


def make_cgroup(name: str) -> None:
    """A cgroup `name` under the root of every hierarchy (v1) or of the one (v2), usable at once."""
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):  # in v1 a new cpuset is empty and takes no process
            if hierarchy != CGROUPS and (hierarchy / file).exists():
                (hierarchy / name / file).write_text((hierarchy / file).read_text())


def remove_cgroup(name: str) -> None:
    """Kill what runs in the cgroups `name` and remove them, the deepest first."""
    for root in [hierarchy / name for hierarchy in _hierarchies() if (hierarchy / name).is_dir()]:
        folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):
                for pid in (folder / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            wait_for(lambda folder=folder: _is_gone(folder), 5)  # type: ignore[misc]


def end_processes_naming(word: str) -> None:
    """Kill the processes that have `word` in their command line: containerd's shims outlive it by design and name its socket."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word in (folder / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def unmount_below(*folders: Path) -> None:
    """Unmount everything that is mounted at or below `folders`."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted(mounts, key=len, reverse=True):
        if any(Path(mount).is_relative_to(folder) for folder in folders):
            run("umount", "--lazy", mount, check=False)


def _hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return sorted(path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink())


def _is_gone(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()
