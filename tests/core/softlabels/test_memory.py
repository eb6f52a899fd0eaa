"""Memory of a prefetch does not grow with the number of public images, but for what each is known by."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig, TeacherConfig
from fedhelp_core.softlabels.prefetch import prefetch
from fedhelp_core.softlabels.teachers import Question, Readiness
from fedhelp_core.store.open import open_store

FEW, MANY = 2_500, 10_000
ROW = 1 + 3 * 32 * 32  # CIFAR-10's binary version


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_images(tmp_path: Path) -> None:
    few, many = (peak_kib(tmp_path, images) for images in (FEW, MANY))

    assert (many - few) / (MANY - FEW) < 1, "KiB an image; its pixels alone are 3"


def peak_kib(folder: Path, images: int) -> int:
    """Of a process of its own that prefetches so many images."""
    rows = folder / f"{images}.bin"
    rows.write_bytes(np.random.default_rng(0).bytes(images * ROW))
    command = [sys.executable, "-m", "tests.core.softlabels.test_memory", str(rows), str(folder / f"store-{images}")]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3]).stdout)


class Undecided:
    """A teacher in this process."""

    config = TeacherConfig(name="undecided", uri="none", classes=10, concurrency=8)

    def prepare(self, question: Question) -> Readiness:
        del question
        return Readiness(batch_size=64, concurrency=8, served_version="")

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> NDArray[np.float64]:
        del request_id
        likes_N10 = 1.0 + images_NHWC.reshape(len(images_NHWC), -1)[:, :10]  # one that answers the same whatever it sees is refused
        return likes_N10 / likes_N10.sum(axis=1, keepdims=True)


def main() -> None:
    teacher = Undecided()
    public = PublicSetConfig(images=Path(sys.argv[1]), layout="cifar10", teachers=(teacher.config,))
    prefetch(open_store(sys.argv[2]), public, TaskConfig(image_size=32), teachers=[teacher])
    # VmHWM: unlike ru_maxrss it does not remember the process that this one was forked from
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    main()
