"""What a hospital runs before the first run: looks at data, state volume, store, clock and GPU, and says in sentences what is wrong.

    python -m fedhelp_dispatch.doctor --store s3://federation/melanoma --endpoint-url https://s3.hub.example --gpu

Started by `helm test` in the pod of the hospital's own worker template, or by hand. Every look is made, whatever the others
found; the exit code is that of the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedhelp_core.answers import LARGEST_SKEW, clock_is_off, skew_of, untrusted
from fedhelp_core.config.silo import SiloConfig, load_silo
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.crashes import as_error
from fedhelp_core.data.datalist import manifest_of
from fedhelp_core.data.items import Item
from fedhelp_core.data.picture_files import SUFFIXES
from fedhelp_core.data.reading import read_examples
from fedhelp_core.disk import disk_errors, require_locks
from fedhelp_core.errors import ConfigError, DataError, FedHelpError, PermanentError, StorageFull, StoreUnavailable, listed
from fedhelp_core.places import require_temporary_folder
from fedhelp_core.processes import exit_code_of
from fedhelp_core.proxies import opener_for
from fedhelp_core.store.open import open_store
from fedhelp_dispatch.request import SILO_CONFIG_VARIABLE

_SAMPLES = 32  # images of each split that are decoded; `check` decodes all of them when a run starts
_SAMPLE_SIZE = 32  # pixels; only whether an image decodes is asked here
_SAMPLE_SIDE = 128  # pixels or voxels; of a mask something must be left
_LEAST_FREE = 2**30  # bytes: two versions of a large model with optimizer state, caches and some room

Finding = Iterator[str]
"""Sentences about what is in order; a FedHelpError says what is not."""


def main(argv: Sequence[str] | None = None) -> int:
    """Look at everything; 0, or the exit code of the first thing that is wrong."""
    arguments = _parser().parse_args(argv)
    found: list[int] = []
    return exit_code_of(lambda: found.append(_look_at_everything(arguments)), program="fedhelp-doctor") or found[0]


def _look_at_everything(arguments: argparse.Namespace) -> int:
    try:
        silo = load_silo(arguments.silo_config)
    except FedHelpError as e:
        return _report([("silo.yaml", e)])
    looks: dict[str, Callable[[], Finding]] = {
        "data": lambda: look_at_data(silo),
        "state": lambda: look_at_state(silo),
        "store": lambda: look_at_store(arguments.store, arguments.endpoint_url),
        "clock": lambda: look_at_clock(arguments.store, arguments.endpoint_url),
        "gpu": lambda: look_at_gpu(wanted=arguments.gpu),
    }
    print(f"silo {silo.name}", flush=True)
    return _report([wrong for name, look in looks.items() if (wrong := _wrong(name, look))])


def look_at_data(silo: SiloConfig) -> Finding:
    """The manifest is read as a run reads it, and the first images of each split are decoded.

    Raises:
        DataError: everything that is wrong with them.
    """
    manifest = manifest_of(silo, None)
    counts = ", ".join(f"{len(items)} {name}" for name, items in manifest.splits())
    yield f"{manifest.source} lists {counts} images"
    sample = [item for _, items in manifest.splits() for item in items[:_SAMPLES]]
    problems = [example.problem for example in read_examples(sample, _task_of(sample)) if example.problem]
    if problems:
        raise DataError(listed(problems))
    yield f"the first {len(sample)} of them open as images"


def _task_of(items: Sequence[Item]) -> TaskConfig:
    """A task that reads such files; which one it is is the hub's to say, and `check` compares."""
    if not items or items[0].mask is None:
        return TaskConfig(name="sample", form="classes", classes=("first", "second"), image_size=_SAMPLE_SIZE)
    picture = items[0].image.suffix.lower() in SUFFIXES
    return TaskConfig(
        name="sample", form="masks", dimensions=2 if picture else 3, channels=1, classes=("background", "foreground"), image_size=_SAMPLE_SIDE)


def look_at_state(silo: SiloConfig) -> Finding:
    """The state volume can be written and has room; what has left so far.

    Raises:
        AccessDenied, StorageFull: it cannot, or has not.
    """
    probe_file = silo.state / ".doctor"
    with disk_errors(probe_file):
        silo.state.mkdir(parents=True, exist_ok=True)
        probe_file.write_bytes(b"writable")
        probe_file.unlink()
        free = shutil.disk_usage(silo.state).free
    require_locks(silo.state)
    require_temporary_folder(silo.state / "tmp")
    if free < _LEAST_FREE:
        raise StorageFull(f"{silo.state}: {free / 2**30:.1f} GiB free, at least {_LEAST_FREE / 2**30:.0f} expected; enlarge the state volume")
    yield f"{silo.state} can be written and has {free / 2**30:.0f} GiB free"
    yield _egress(silo.state / "egress.jsonl")


def look_at_store(url: str, endpoint_url: str | None) -> Finding:
    """The store is reached, the credentials suffice, and it honours write-once objects.

    Raises:
        ConfigError, AccessDenied, StoreUnavailable: not so.
    """
    open_store(url, endpoint_url=endpoint_url).probe()
    yield f"{url} takes, shows and deletes objects, and never overwrites one"


def look_at_clock(url: str, endpoint_url: str | None) -> Finding:
    """This node's clock against the store's own answer.

    Raises:
        ConfigError: it is off by more than S3 signatures bear.
        StoreUnavailable: the store does not answer, or does not say its time.
    """
    if open_store(url).is_local:
        yield "a folder is the store: nothing to compare the clock with"
        return
    address = endpoint_url or "https://s3.amazonaws.com"
    skew = skew_of(_date_at(address))
    if skew is None:
        raise StoreUnavailable(f"{address}: says no time, so that the clock cannot be compared; is it an S3 server?")
    if abs(skew) > LARGEST_SKEW:
        raise ConfigError(clock_is_off(address, skew))
    yield f"within {abs(skew) + 1:.0f} s of {address}"


def look_at_gpu(*, wanted: bool) -> Finding:
    """A GPU that was asked for can compute.

    Raises:
        ConfigError: PyTorch cannot use one.
    """
    if not wanted:
        yield "none asked for: this silo trains on the CPU"
        return
    import torch  # seconds to import: after everything that is found without it

    if not torch.cuda.is_available():
        raise ConfigError(
            f"a GPU was asked for, but PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees none; check the node's driver version, the device"
            " plugin and gpu.resource in the chart's values, or set gpu.count to 0")
    device = torch.cuda.get_device_properties(0)
    try:
        torch.ones(256, 256, device="cuda").matmul(torch.ones(256, 256, device="cuda")).sum().item()
    except RuntimeError as e:
        raise ConfigError(f"GPU {device.name}: does not compute ({str(e).splitlines()[0]}); check its driver, and what else runs on it") from e
    yield f"{device.name} with {device.total_memory / 2**30:.0f} GiB computes"


def _date_at(address: str) -> str:
    """The server's clock: the Date of whatever it answers."""
    bundle = os.environ.get("AWS_CA_BUNDLE")
    context = ssl.create_default_context(cafile=bundle) if bundle else None
    try:
        with opener_for(address, urllib.request.HTTPSHandler(context=context)).open(
            urllib.request.Request(address, method="HEAD"), timeout=10) as answer:
            return str(answer.headers["Date"])
    except urllib.error.HTTPError as e:  # an answer all the same
        with e:
            return str(e.headers["Date"])
    except (OSError, ValueError) as e:
        if (why := untrusted(e, bundle="AWS_CA_BUNDLE")) is not None:
            raise ConfigError(f"{address}: {why}") from e
        raise StoreUnavailable(f"{address}: does not answer ({e}); check store.endpointUrl, store.network, proxy and certificate authority") from e



def _egress(ledger: Path) -> str:
    """What left this silo so far, in one sentence."""
    if not ledger.exists():
        return "nothing has left this silo yet"
    try:
        objects = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
        size = sum(entry["bytes"] for entry in objects)
        return f"{len(objects)} objects ({size / 2**20:.1f} MiB) left this silo so far, the last one at {objects[-1]['time']}: {ledger}"
    except (LookupError, TypeError, ValueError) as e:
        raise DataError(f"{ledger}: has a line that no worker wrote ({e}); keep a copy, and find out who changed the egress ledger") from e


def _wrong(name: str, look: Callable[[], Finding]) -> tuple[str, FedHelpError] | None:
    try:
        for sentence in look():
            print(f"ok     {name}: {sentence}", flush=True)
    except FedHelpError as e:
        return name, e
    except OSError as e:  # a volume that answers in a way that nobody foresaw
        return name, PermanentError(f"{e.filename or name}: {e.strerror or e}; check that its volume is mounted and healthy")
    except Exception as e:
        return name, as_error(e, f"fedhelp-doctor, {name}")
    return None


def _report(wrong: Sequence[tuple[str, FedHelpError]]) -> int:
    for name, error in wrong:
        for line in str(error).splitlines():
            print(f"wrong  {name}: {line}", flush=True)
    if wrong:
        print(f"{len(wrong)} things have to be put right" if len(wrong) > 1 else "one thing has to be put right", flush=True)
        return wrong[0][1].exit_code
    print("everything is in order", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedhelp-doctor", description="Look at a hospital's data, state volume, store, clock and GPU.")
    configured = os.environ.get(SILO_CONFIG_VARIABLE)
    parser.add_argument(
        "--silo-config", required=not configured, default=configured, type=Path, help=f"silo.yaml (default: ${SILO_CONFIG_VARIABLE})")
    parser.add_argument("--store", required=True, help="s3://bucket/prefix, or a folder")
    parser.add_argument("--endpoint-url", help="S3 endpoint other than AWS")
    parser.add_argument("--gpu", action="store_true", help="a GPU is expected")
    return parser


if __name__ == "__main__":
    sys.exit(main())
