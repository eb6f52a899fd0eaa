"""FedHelp's commands in processes of their own whose seconds of imports were paid once: forked from a server that has imported PyTorch and MLflow.

`start` gives a `subprocess.Popen` for `fedhelp ...` and `python -m fedhelp_components....`: a real child of the caller, with its environment,
output, signals and exit code. Its workers come from a fork server of its own, as always, which is forked too. tiny.Processes uses it; tests of
how a process starts, or of what it imports, start the program itself. Linux alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = "FEDHELP_TEST_MARK"
_NO_MARK = "0" * 32
_SET_CHILD_SUBREAPER = 36  # of Linux's prctl: who takes over the children of a child that ends
_MOST = 2**20  # bytes of a request
_STARTS_WORKERS = {"run", "check", "federation", "silo_training", "evaluation", "left_out"}
_READ_AT_START = ("PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH", "LANG", "LC_")
_server: tuple[subprocess.Popen[bytes], socket.socket] | None = None
_lock = threading.Lock()


def start(command: Sequence[str | Path | int], environment: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start `command` as Popen does, `options` are its, with text: forked where that can be, as usual elsewhere. `environment`: None for ours."""
    words, found = [str(part) for part in command], dict(os.environ if environment is None else environment)
    if _can_be_warm(words, found):
        return WarmProcess(words, text=True, env=found, **options)
    return start_anew(words, found, **options)


def start_anew(command: Sequence[str | Path | int], environment: Mapping[str, str], **options: Any) -> subprocess.Popen[str]:
    """As `start`, but never forked."""
    return subprocess.Popen([str(part) for part in command], text=True, env=environment, **options)


def _can_be_warm(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether `command` is one of FedHelp's own, and its environment is none that Python or PyTorch read when they start."""
    ours = command[0] == str(Path(sys.executable).with_name("fedhelp")) or (
        command[:2] == [sys.executable, "-m"] and command[2].startswith("fedhelp_"))
    return ours and sys.platform == "linux" and all(
        os.environ.get(name) == environment.get(name) for name in {*os.environ, *environment} if name.startswith(_READ_AT_START))


class WarmProcess(subprocess.Popen[str]):
    """As Popen, for a command for which `_can_be_warm` holds."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, startupinfo: Any,
                       creationflags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int, errread: int, errwrite: int,
                       *_: Any) -> None:
        request = json.dumps([[str(part) for part in args], dict(env), str(cwd or os.getcwd())]).encode()
        theirs = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        prctl = ctypes.CDLL(None).prctl
        try:
            with _lock:
                server = _running_server()
                prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the command's parent ends at once, and leaves it to this process
                try:
                    socket.send_fds(server, [request], theirs)
                    self.pid = int(server.recv(64))
                finally:
                    prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def _running_server() -> socket.socket:
    """The way to this process's server."""
    global _server
    if _server is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for one in (ours, theirs):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FEDHELP_TEST", "MLFLOW_", "AWS_"))}
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT, env={**clean, MARK: _NO_MARK},
                stdin=subprocess.DEVNULL)
        _server = process, ours
    return _server[1]


def end_server() -> None:
    """At the end of the session."""
    global _server
    if _server is not None:
        process, way = _server
        _server = None
        way.close()
        process.wait()


def _import_what_takes_seconds(scratch: Path) -> None:
    """Modules, and what libraries look up once a process: the first export of a network imports 700 more."""
    from fedhelp_core.tracking.server import import_ahead

    import_ahead()
    import mlflow.utils.requirements_utils as requirements
    import torch._dynamo

    import fedhelp_pipelines.in_process  # noqa: F401

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # no pool of threads may be there when this process forks
    exported = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 1),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(exported, scratch / "relu.pt2")
    torch.export.load(scratch / "relu.pt2")
    torch.set_num_threads(threads)
    if hasattr(requirements, "_init_modules_to_packages_map"):
        requirements._init_modules_to_packages_map()
    prepared_databases(scratch / "mlflow.db")


def prepared_databases(template: Path) -> None:
    """From now on MLflow's new SQLite files in this process are copies of `template`, which the first one makes: its migrations take seconds."""
    import mlflow.store.db.utils as database
    import mlflow.store.model_registry.sqlalchemy_store as registry
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    migrate = database._initialize_tables

    def initialise(engine: Any) -> None:
        path = engine.url.database
        if not template.exists():
            migrate(engine)
        copy = Path(tempfile.mkdtemp(dir=template.parent)) / "mlflow.db"
        if not template.exists():
            shutil.copyfile(path, copy)
            copy.replace(template)
        elif Path(path).stat().st_size == 0:
            engine.dispose()
            shutil.copyfile(template, copy)
            shutil.move(copy, path)
        else:
            migrate(engine)

    database._initialize_tables = registry._initialize_tables = initialise


def _serve(requests: socket.socket) -> tuple[list[str], dict[str, str]] | None:
    """Fork a process for every request. Returns in such a process alone, with what it shall run; None when nobody asks any more."""
    while True:
        body, files, *_ = socket.recv_fds(requests, _MOST, 3)
        if not body:
            return None
        told, tell = os.pipe()
        between = os.fork()
        if not between:
            command = os.fork()
            if command:
                os.write(tell, str(command).encode())
                os._exit(0)
            for number, file in enumerate(files):
                os.dup2(file, number)
            requests.close()
            os.closerange(3, max([told, tell, *files]) + 1)
            arguments, environment, folder = json.loads(body)
            os.chdir(folder)
            return arguments, environment
        os.waitpid(between, 0)
        os.close(tell)
        requests.send(os.read(told, 64))
        for file in (told, *files):
            os.close(file)


def _run(arguments: list[str], environment: dict[str, str]) -> None:
    """What `arguments` name, as if Python had just started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    _show_mark(environment.get(MARK, _NO_MARK))
    module = arguments[2] if arguments[1] == "-m" else None
    if {arguments[1], (module or "").rpartition(".")[2]} & _STARTS_WORKERS:
        _fork_server_ahead()
    if module is None:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        sys.argv = arguments[2:]
        sys.modules.pop(f"{module}.__main__", None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _show_mark(mark: str) -> None:
    """Write `mark` where /proc/<pid>/environ shows it: a fork has its parent's environment there."""
    begin, end = (int(field) for field in Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[47:49])
    place = ctypes.string_at(begin, end - begin).index(f"{MARK}=".encode()) + len(MARK) + 1
    ctypes.memmove(begin + place, mark.encode(), len(_NO_MARK))


def _fork_server_ahead() -> None:
    """The fork server of multiprocessing: forked here, where all is imported, instead of started by its first worker."""
    start, before = forkserver.util.spawnv_passfds, signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # type: ignore[attr-defined]

    def fork(_: Any, arguments: Sequence[Any], files: Sequence[int]) -> int:
        pid = os.fork()
        if not pid:
            for file in range(3, 256):
                if file not in files:
                    try:
                        os.close(file)
                    except OSError:
                        continue
            try:
                exec(arguments[-1])  # main(...) of multiprocessing.forkserver
            finally:
                os._exit(0)
        return pid

    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    forkserver.util.spawnv_passfds = fork  # type: ignore[attr-defined]
    try:
        forkserver.ensure_running()
    finally:
        forkserver.util.spawnv_passfds = start  # type: ignore[attr-defined]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if __name__ == "__main__":
    scratch = Path(tempfile.mkdtemp(prefix="fedhelp-tests-"))
    _import_what_takes_seconds(scratch)
    to_run = _serve(socket.socket(fileno=int(sys.argv[1])))
    if to_run is None:
        shutil.rmtree(scratch)
    else:
        _run(*to_run)
