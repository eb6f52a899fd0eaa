"""Prefetch beside a bare client that saturates the same server; its memory; and what training waits for the set it makes.

    python -m benchmarks.soft_labels [--repeat 3]

The server is KServe's, in an environment of its own (.cache/model_servers), with a model that does nearly nothing: so what
the ledger costs shows most. The bare client sends bodies that it made before, from as many threads, and keeps no answer. Both
ask about the same 10,000 pictures of 32 x 32, the ledger is a folder, and both take turns so that noise is noise for both.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.figures import Figure, run_alone, spread
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.task import TaskConfig, algorithm_for
from fedhelp_core.config.teachers import PublicSetConfig, TeacherConfig
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.softlabels.prefetch import PrefetchReport, prefetch
from fedhelp_core.softlabels.teachers import Question, Readiness
from fedhelp_core.store.open import open_store

IMAGES, FEW, SIDE, CLASSES, BATCH, CONCURRENCY = 10_000, 2_500, 32, 10, 64, 8
ASKING_TARGET = 1 / 0.9  # of the bare client's time
MEMORY_TARGET, WAIT_TARGET = 1.1, 2.0  # of the memory for a quarter of the images; percent of an epoch
CLASSIFICATION, SEGMENTATION = TaskConfig(image_size=SIDE), TaskConfig(name="lung-segmentation", image_size=64)
PRIVATE_IMAGES, PRIVATE_PICTURES, MASKS = 351, 60, 500  # 351: the smallest silo of Fed-ISIC2019


def draw(folder: Path, count: int) -> Path:
    """`count` PNG pictures of noise, every one different."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.png", compress_level=0)
    return folder


def teacher(uri: str) -> TeacherConfig:
    return TeacherConfig(
        name="bench", kind="openinference", uri=uri, classes=CLASSES, batch_size=BATCH, concurrency=CONCURRENCY, transport="binary")


def prefetched(folder: Path, images: Path, uri: str) -> tuple[PrefetchReport, float]:
    """The report of a prefetch into a new store, and the seconds from its first question to its last answer."""
    moments: list[float] = []
    store = open_store(str(folder))
    with _noting(moments):
        report = prefetch(store, PublicSetConfig(images=images, teachers=(teacher(uri),)), CLASSIFICATION)
    return report, moments[1] - moments[0]


@contextlib.contextmanager
def _noting(moments: list[float]) -> Iterator[None]:
    """Notes when asking began and ended."""
    from fedhelp_core.softlabels.asking import Asking

    ask: Callable[..., None] = Asking.ask

    def noting(self: Asking, unseen: list[int]) -> None:
        moments.append(time.perf_counter())
        ask(self, unseen)
        moments.append(time.perf_counter())

    Asking.ask = noting  # type: ignore[method-assign]
    try:
        yield
    finally:
        Asking.ask = ask  # type: ignore[method-assign]


def bodies(pictures_NHWC: NDArray[np.uint8]) -> list[tuple[dict[str, str], bytes]]:
    """What the bare client sends."""
    found = []
    for start in range(0, len(pictures_NHWC), BATCH):
        batch = pictures_NHWC[start : start + BATCH]
        head = json.dumps({
            "inputs": [{"name": "images", "shape": batch.shape, "datatype": "UINT8", "parameters": {"binary_data_size": batch.nbytes}}],
            "parameters": {"binary_data_output": True}}).encode()
        found.append(({"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}, head + batch.tobytes()))
    return found


def bare(uri: str, requests: list[tuple[dict[str, str], bytes]]) -> float:
    """Seconds that threads with nothing to do but send need for all of them."""
    address, left = urlsplit(uri), SimpleQueue[tuple[dict[str, str], bytes]]()
    for request in requests:
        left.put(request)

    def send() -> None:
        connection = http.client.HTTPConnection(address.netloc, timeout=60)
        with contextlib.closing(connection), contextlib.suppress(Empty):
            while True:
                headers, body = left.get_nowait()
                connection.request("POST", f"{address.path}/infer", body, headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200, answer.status

    threads = [threading.Thread(target=send) for _ in range(CONCURRENCY)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def peak_memory(folder: Path, images: Path, uri: str) -> float:
    """MiB at the height of a prefetch in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.soft_labels", "--prefetch", str(folder), str(images), uri]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


class _Brightness:
    """A teacher of masks in this process: what is bright is foreground."""

    config = TeacherConfig(name="brightness", uri="none", classes=1)

    def prepare(self, question: Question) -> Readiness:
        return Readiness(batch_size=BATCH, concurrency=1, served_version="")

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> NDArray[np.float64]:
        return np.moveaxis(images_NHWC, -1, 1) / 255


def masks_of(folder: Path, pictures: Path) -> str:
    """sha256 of a set of soft masks of these grey pictures."""
    teacher = _Brightness()
    return prefetch(
        open_store(str(folder)), PublicSetConfig(images=pictures, teachers=(teacher.config,)), SEGMENTATION,
        teachers=[teacher]).distillation_set_sha256


def draw_grey(folder: Path) -> Path:
    """Grey pictures with one soft bright blob each, as organs are."""
    folder.mkdir()
    side = SEGMENTATION.image_size
    y, x = np.mgrid[:side, :side]
    for number, (row, column) in enumerate(np.random.default_rng(0).uniform(side / 4, 3 * side / 4, (MASKS, 2))):
        blob = 255 / (1 + np.exp((np.hypot(y - row, x - column) - side / 5) / 2))
        Image.fromarray(blob.astype(np.uint8)).save(folder / f"{number:05d}.png")
    return folder


def data_wait(folder: Path, sha256: str, task: TaskConfig, private_images: int) -> tuple[float, float]:
    """(seconds that the public steps wait for the mapped set, seconds in all) in one epoch of a small silo with this many images."""
    import torch

    from fedhelp_core.algorithm.batches import Rows
    from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, initial_weights, local_update
    from fedhelp_core.algorithm.randomness import fix_arithmetic
    from fedhelp_core.softlabels.distillation_set import load_distillation_set

    waited = 0.0

    class Timed:
        def __init__(self, rows: Rows) -> None:
            self._rows = rows
            self.shape = rows.shape

        def __getitem__(self, index_B: torch.Tensor) -> torch.Tensor:
            nonlocal waited
            started = time.perf_counter()
            found = self._rows[index_B]
            waited += time.perf_counter() - started
            return found

    fix_arithmetic(threads=1)
    public = load_distillation_set(open_store(str(folder)), sha256)
    generator = torch.Generator().manual_seed(0)
    shape = (private_images, *public.images_NCHW.shape[1:])
    masks = task.per_pixel
    labels = torch.randint(0, 2, shape, generator=generator) if masks else torch.randint(0, len(task.classes), shape[:1], generator=generator)
    data = SiloData(
        images_NCHW=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), labels_N=labels,
        public_images_MCHW=Timed(public.images_NCHW), public_probabilities_MP=Timed(public.probabilities_NC))
    algorithm = AlgorithmConfig.model_validate(algorithm_for({"name": task.name}))
    settings = UpdateSettings(algorithm=algorithm, objective=objective_of(task), kind="small", seed=1, silo="bench")
    start = initial_weights(algorithm, objective_of(task), seed=1)
    began = time.perf_counter()
    local_update(start, SiloState.empty(), data, settings, round_number=1)
    return waited, time.perf_counter() - began


def figures(repeat: int) -> list[Figure]:
    """Time, memory, and training's wait; the server is started and ended here."""
    from tests.core.softlabels.model_servers import kserve

    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as scratch:
        folder = Path(scratch)
        images, few = draw(folder / "images", IMAGES), draw(folder / "few", FEW)
        with kserve(folder, side=SIDE, classes=CLASSES) as server:
            found = _asking(folder, images, server.uri, repeat)
            more, less = peak_memory(folder / "more", images, server.uri), peak_memory(folder / "less", few, server.uri)
            report, _ = prefetched(folder / "kept", images, server.uri)
        waits = [data_wait(folder / "kept", report.distillation_set_sha256, CLASSIFICATION, PRIVATE_IMAGES) for _ in range(repeat)]
        masks = masks_of(folder / "masks", draw_grey(folder / "grey"))
        mask_waits = [data_wait(folder / "masks", masks, SEGMENTATION, PRIVATE_PICTURES) for _ in range(repeat)]
    return [
        *found,
        Figure(name=f"prefetch: peak memory with {IMAGES:,} images over that with {FEW:,}", value=more / less, unit="", target=MEMORY_TARGET,
               detail=f"{more:.0f} and {less:.0f} MiB"),
        _wait_figure("public step: wait for the mapped set, of a small silo's epoch", waits, f"ResNet20, {PRIVATE_IMAGES} private images"),
        _wait_figure("public step: wait for deflated masks, of a small silo's epoch", mask_waits,
                     f"U-Net, {PRIVATE_PICTURES} private pictures of {SEGMENTATION.image_size} x {SEGMENTATION.image_size}"),
    ]


def _wait_figure(name: str, waits: list[tuple[float, float]], detail: str) -> Figure:
    shares = [100 * waited / whole for waited, whole in waits]
    return Figure(name=name, value=statistics.median(shares), unit="%", target=WAIT_TARGET,
                  detail=f"{detail}, quartiles {spread(shares)} %; an epoch {statistics.median(whole for _, whole in waits):.1f} s")


def _asking(folder: Path, images: Path, uri: str, repeat: int) -> list[Figure]:
    requests = bodies(np.stack([np.asarray(Image.open(path)) for path in sorted(images.iterdir())]))
    bare(uri, requests)  # warm-up
    ours, whole, yardstick = [], [], []
    for number in range(repeat):
        yardstick.append(bare(uri, requests))
        report, seconds = prefetched(folder / f"store-{number}", images, uri)
        ours.append(seconds)
        whole.append(report.seconds)
    ratios = [own / other for own, other in zip(ours, yardstick, strict=True)]
    rate = IMAGES / statistics.median(ours)
    return [
        Figure(name="prefetch: time to ask about 10,000 images, over a bare client's", value=statistics.median(ratios), unit="", target=ASKING_TARGET,
               yardstick=f"bare client, {CONCURRENCY} threads: {IMAGES / statistics.median(yardstick):,.0f} images/s",
               detail=f"{rate:,.0f} images/s, batches of {BATCH}; by run {', '.join(f'{ratio:.2f}' for ratio in ratios)}"),
        Figure(name="prefetch: decoding, asking and writing the set of 10,000 images", value=statistics.median(whole), unit="s",
               detail=f"quartiles {spread(whole)} s"),
    ]


def _alone(folder: str, images: str, uri: str) -> None:
    """A prefetch that prints its peak memory in MiB."""
    prefetched(Path(folder), Path(images), uri)
    # VmHWM: unlike ru_maxrss it does not remember the process that this one was forked from
    print(int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prefetch"]:
        _alone(*sys.argv[2:])
    else:
        run_alone(figures, __doc__, repeat=3)
