"""What the packages of the images weigh, in MB with their byte code, CUDA's libraries apart.

    python -m benchmarks.image_packages [--revision REV] [--whole]

Installs the images' lists as images/Dockerfile does, by hard links to uv's cache, which has to hold or fetch some 5 GB. `--revision`: the lists
of another commit; `--whole`: with all that images/environment.sh leaves out but the packages' own test suites.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Figure, show

ROOT = Path(__file__).parents[1]
LISTS = {"hub": ("hub/requirements.txt",), "silo": ("silo/torch.txt", "silo/requirements.txt")}
CUDA = ("nvidia", "cuda")
_LARGEST = 8
_WITHOUT_TESTS = "find \"$VIRTUAL_ENV\"/lib/python3.*/site-packages -type d -name tests -prune -exec rm -r {} +"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--revision", metavar="REV", help="the lists of this commit; default: those of the working tree")
    parser.add_argument("--whole", action="store_true", help="leave out the packages' own test suites alone")
    arguments = parser.parse_args()
    show([figure for image in LISTS for figure in figures(image, arguments.revision, whole=arguments.whole)])


def figures(image: str, revision: str | None, *, whole: bool) -> list[Figure]:
    """The image's packages together, and its largest folders."""
    with tempfile.TemporaryDirectory(prefix="image-", dir=ROOT / ".cache") as folder:  # beside uv's cache, as hard links want it
        environment = {**os.environ, "VIRTUAL_ENV": folder, "UV_COMPILE_BYTECODE": "1"}
        uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        for name in LISTS[image]:
            text = (ROOT / "images" / name).read_text(encoding="utf-8") if revision is None else subprocess.run(
                ["git", "show", f"{revision}:images/{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            listed = Path(folder, "list.txt")
            listed.write_text(text, encoding="utf-8")
            subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", listed], check=True, env=environment)
        leave_out = _WITHOUT_TESTS if whole else f". images/environment.sh; VIRTUAL_ENV={folder}; without_what_is_never_loaded"
        subprocess.run(["sh", "-ec", leave_out], check=True, cwd=ROOT, env=environment)
        (packages,) = Path(folder, "lib").glob("python3.*/site-packages")
        sizes = {one.name: megabytes(one) for one in packages.iterdir()}
    cuda = sum(sizes.pop(name, 0.0) for name in CUDA)
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_LARGEST]
    return [Figure(
        name=f"packages of the {image} image", value=sum(sizes.values()), unit="MB", yardstick=f"CUDA {cuda:,.0f} MB" if cuda else "",
        detail=", ".join(f"{name} {sizes[name]:,.0f}" for name in largest))]


def megabytes(path: Path) -> float:
    """Of a file, or of all files in a folder."""
    files = [path] if path.is_file() else (one for one in path.rglob("*") if one.is_file() and not one.is_symlink())
    return sum(one.stat().st_size for one in files) / 1e6


if __name__ == "__main__":
    main()
