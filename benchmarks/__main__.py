"""All figures of docs/benchmarks.md beside their yardsticks, in one table.

    python -m benchmarks [--only NAME] [--peers] [--repeat N] [--json FILE]

Each benchmark is a process of its own, one after the other, so that none inherits another's imports, threads or memory.
`--peers` adds NVFLARE's and Flower's rounds on the same payload; their environments are made under .cache/peers first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Figure, add_options, machine, read, show, write

BENCHMARKS = {
    "local_update": "one local update of each task beside a plain PyTorch or MONAI loop",
    "reading": "1,000 pictures through the loader beside Pillow alone",
    "volumes": "memory of a silo with volumes of 128^3",
    "any_network": "a step of DenseNet121 at 224 pixels and of SegResNet at 96^3 beside a plain loop, and memory",
    "round_control": "a round with no training in it",
    "demo": "the demo from its command to its report, by part",
    "startup": "from the command to the end of round 1",
    "steps": "what each step of a run costs beside its work",
    "soft_labels": "prefetch beside a bare client, its memory, and training's wait for its set",
    "serving": "a served model beside MLServer, and a minute of 16 clients",
    "averaging": "memory and time of Eq 7 on large files",
    "peers": "NVFLARE's and Flower's rounds on round_control's payload (only with --peers)",
}


def main() -> int:
    """0 if every benchmark ran; whether targets are met is in the table, since that depends on the machine."""
    arguments = _parser().parse_args()
    names = arguments.only or [name for name in BENCHMARKS if name != "peers"]
    if arguments.peers and "peers" not in names:
        names = [*names, "peers"]
    found: list[Figure] = []
    failed: list[str] = []
    for name in names:
        print(f"{name}: {BENCHMARKS[name]} ...", file=sys.stderr, flush=True)
        try:
            found += measured(name, arguments.repeat)
        except subprocess.CalledProcessError as e:
            failed.append(f"{name}: ended with exit code {e.returncode}; its messages are above")
    print(f"\nMachine: {machine()}\n")
    show(found)
    if arguments.json is not None:
        write(found, arguments.json)
    for fault in failed:
        print(fault, file=sys.stderr)
    return 1 if failed else 0


def measured(name: str, repeat: int | None) -> list[Figure]:
    """The figures of one benchmark, from a process of its own.

    Raises:
        CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder:
        report = Path(folder) / "figures.json"
        options = [] if repeat is None else ["--repeat", str(repeat)]
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--json", str(report), *options], check=True, stdout=subprocess.DEVNULL)
        return read(report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:14} {what}" for name, what in BENCHMARKS.items()))
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), metavar="NAME", help="this benchmark alone (repeatable)")
    parser.add_argument("--peers", action="store_true", help="NVFLARE and Flower too (installs them under .cache/peers: some 6 GB)")
    add_options(parser, repeat=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
