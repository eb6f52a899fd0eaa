"""PyTorch's index of CPU builds for the tests' own images: $TORCH_INDEX where it is given, else a stand-in with one wheel on this machine.

Called by `built`. The wheel is the locked one of the package index, NVIDIA's libraries replaced by `without_cuda`'s empty one;
it is made once per Python and version and kept in .cache/torch_index.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.images.without_cuda import put_stand_in

ROOT = Path(__file__).resolve().parents[2]
_CACHE = ROOT / ".cache" / "torch_index"
_OF_NVIDIA = ("nvidia-cuda-runtime", "nvidia-cuda-cupti")  # a few MB; PyTorch asks them whether there is a GPU


@contextlib.contextmanager
def torch_index(python: str) -> Iterator[str]:
    """The index' address while the context lasts, for images with this Python, such as '3.11'. Builds must share this machine's network."""
    if given := os.environ.get("TORCH_INDEX"):
        yield given
        return
    handler = functools.partial(_Silent, directory=str(_made(python)))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Silent(SimpleHTTPRequestHandler):
    """Its listing of the folder `torch` is a page of the index."""

    def log_message(self, *_: object) -> None:
        pass


def _made(python: str) -> Path:
    """The folder that is served, with torch/<wheel> in it."""
    pins = _pins()
    folder = _CACHE / f"{pins['torch'].split()[0]}-{python}"
    if not folder.is_dir():
        packages, scratch = _CACHE / "packages", _CACHE / "scratch"
        for left in (packages, scratch):
            shutil.rmtree(left, ignore_errors=True)
        _CACHE.mkdir(parents=True, exist_ok=True)
        wanted = _CACHE / "wanted.txt"
        wanted.write_text("\n".join(pins[name] for name in ("torch", *_OF_NVIDIA)) + "\n", encoding="utf-8")
        uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python-version", python, "--target", str(packages),
             "-r", str(wanted)], check=True)
        _write_wheel(packages, scratch / "torch")
        scratch.rename(folder)
        shutil.rmtree(packages)
    return folder


def _write_wheel(packages: Path, folder: Path) -> None:
    """PyTorch's wheel of what is installed in `packages`, with the few libraries of NVIDIA that it calls beside its own."""
    libraries = packages / "torch" / "lib"
    for path in (packages / "nvidia").rglob("*.so*"):
        shutil.copy(path, libraries)
    put_stand_in(libraries)
    (information,) = packages.glob("torch-*.dist-info")
    tag = re.search(r"^Tag: (\S+)$", (information / "WHEEL").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert tag is not None
    tops = {packages / line.split("/")[0] for line in (information / "RECORD").read_text(encoding="utf-8").splitlines() if line[0].isalpha()}
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"{information.name.removesuffix('.dist-info')}-{tag.group(1)}.whl", "w") as wheel:
        for path in sorted(path for top in tops if top.name != "bin" for path in (top.rglob("*") if top.is_dir() else [top]) if path.is_file()):
            if path.suffix != ".pyc":
                wheel.write(path, path.relative_to(packages))


def _pins() -> dict[str, str]:
    """Package -> its entry in the silo image's list of PyTorch, hashes included."""
    text = (ROOT / "images" / "silo" / "torch.txt").read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]
    return {entry.split("==")[0]: entry for entry in entries}
