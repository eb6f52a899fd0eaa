"""A containerd of our own: its folders, its configuration for Kubernetes, images from the local Docker engine. Used by node.py.

Images of several GB take minutes to unpack: `stored_images` does that once per set of images and keeps the result in the cache;
every node that needs them starts from hard links to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster.build import cache_folder
from tests.cluster.machine import run
from tests.cluster.processes import Processes

PAUSE_IMAGE = "fedhelp.test/pause:1"


class Containerd:
    """One containerd: sockets and state under `folder`, images under `root`, started among `processes`."""

    def __init__(self, folder: Path, root: Path, processes: Processes) -> None:
        self.folder = folder
        self.socket = folder / "containerd.sock"
        self._root = root
        self._processes = processes

    def start(self) -> None:
        """Start it and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "containerd.toml"
        configuration.write_text(f"""
version = 2
root = "{self._root}"
state = "{self.folder}/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true  # runc fails without it where the machine lacks CAP_SYS_RESOURCE
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self.folder}/networks"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{self.folder}/runc"
""")
        self._processes.start("containerd", ["containerd", "--config", configuration])
        self._processes.wait("containerd", lambda: self.socket.exists() and self.ctr("version", check=False).returncode == 0, 60)

    def ctr(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run containerd's own client in the namespace of Kubernetes' containers."""
        return run("ctr", "--address", str(self.socket), "--connect-timeout", "10s", "--namespace", "k8s.io", *arguments, check=check, **options)

    def import_images(self, *names: str) -> None:
        """Import images of the local Docker engine; RuntimeError names the one that it lacks."""
        for name in names:
            with subprocess.Popen(["docker", "save", name], stdout=subprocess.PIPE) as saving:
                self.ctr("images", "import", "-", stdin=saving.stdout)
            if saving.returncode != 0:
                raise RuntimeError(f"docker has no image {name}; build it first (make images)")

    def import_archive(self, archive: bytes) -> None:
        """Import what `docker save` would have written."""
        with tempfile.TemporaryFile() as file:
            file.write(archive)
            file.seek(0)
            self.ctr("images", "import", "-", stdin=file)


def stored_images(names: Sequence[str]) -> Path:
    """A containerd root with `names` unpacked, never changed once it is there. Only the latest set is kept: it is large."""
    ids = run("docker", "image", "inspect", "--format", "{{.Id}} {{.RepoTags}}", *names).stdout
    folder = cache_folder() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / hashlib.sha256(ids.encode()).hexdigest()[:16]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stored.exists():
            for old in folder.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            _unpack(names, stored)
    return stored


def start_from(stored: Path, root: Path) -> None:
    """Make the new folder `root` a containerd root with the images of `stored`."""
    root.parent.mkdir(parents=True, exist_ok=True)
    run("cp", "--archive", "--link", str(stored), str(root))
    for database in root.rglob("*.db"):  # all other files in there are never changed, only removed
        content = database.read_bytes()
        database.unlink()
        database.write_bytes(content)


def _unpack(names: Sequence[str], stored: Path) -> None:
    unfinished = stored.with_name(".unfinished")
    with tempfile.TemporaryDirectory(prefix="fedhelp-containerd-") as scratch, contextlib.ExitStack() as stack:
        processes = Processes(Path(scratch) / "processes")
        stack.callback(processes.stop_all)
        containers = Containerd(Path(scratch), unfinished, processes)
        containers.start()
        containers.import_images(*names)
    unfinished.rename(stored)
