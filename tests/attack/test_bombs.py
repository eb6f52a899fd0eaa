"""No file makes a reader allocate or wait for what it merely announces: each bomb is refused by name within little memory.

Memory is measured, not trusted: every case runs in a process whose address space is limited, so that an allocation of the announced size fails it.
"""

from __future__ import annotations

import contextlib
import gzip
import multiprocessing
import resource
import tarfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_core.budget import BytesInFlight
from fedhelp_core.config.files import mapping_in, read_yaml
from fedhelp_core.config.silo import DatalistData
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.csv_files import Table
from fedhelp_core.data.datalist import read_datalist
from fedhelp_core.data.decode import decode
from fedhelp_core.data.items import Item
from fedhelp_core.data.pictures import read_picture
from fedhelp_core.data.public import preparation_of
from fedhelp_core.data.volumes import VolumeReader
from fedhelp_core.errors import ConfigError, DataError
from fedhelp_core.softlabels.public_images import read_public_images
from tests.attack import bombs

pytestmark = [pytest.mark.attack, pytest.mark.slow, pytest.mark.timeout(120)]
_ROOM = 768 * 2**20  # bytes beyond what the process has: far less than any bomb announces
PICTURES = TaskConfig(name="melanoma", image_size=32)
VOLUMES = TaskConfig(name="brain-segmentation", image_size=64)


def refused(function: Callable[..., Any], *arguments: Any) -> str:
    """What `function` says in a process of its own with little room, which must be one sentence of ours."""
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    process = context.Process(target=_with_little_room, args=(said, function, arguments))
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
        pytest.fail("it does not end")
    assert process.exitcode == 0 and not said.empty(), f"ended with {process.exitcode}"
    answer = str(said.get())
    assert answer and answer.isprintable() and "Traceback" not in answer, answer
    return answer


def _with_little_room(said: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (30, 31))
    try:
        said.put(function(*arguments))
    except (ConfigError, DataError) as e:
        said.put(str(e))
    except BaseException:
        said.put(f"\n{traceback.format_exc()}")


def of_picture(path: Path) -> str:
    return decode(path, 32).problem or read_picture(Item(path, mask=path), 32).problem


def of_volume(path: Path) -> str:
    return VolumeReader(VOLUMES).read_image(path).problem


def of_datalist(path: Path) -> str:
    return "; ".join(read_datalist(DatalistData(layout="datalist", datalist=path)).problems) or "no problem"


def of_table(path: Path) -> str:
    table = Table(path, {"image": "image", "label": "label"}, needed=["image", "label"])
    return f"{len(list(table.rows()))} rows"


def of_yaml(path: Path) -> str:
    return f"{len(read_yaml(path))} fields"


def of_public(path: Path, layout: str) -> str:
    return f"{len(read_public_images(path, preparation_of(PICTURES), layout=layout).hashes)} images"


@pytest.mark.parametrize("name", bombs.PICTURES)
def test_a_picture_that_announces_too_much_is_refused(tmp_path: Path, name: str) -> None:
    path = bombs.PICTURES[name](tmp_path)
    assert path.stat().st_size < 2**20
    assert "cannot be read as an image" in refused(of_picture, path)


@pytest.mark.parametrize("name", bombs.VOLUMES)
def test_a_volume_that_announces_too_much_is_refused(tmp_path: Path, name: str) -> None:
    assert "a.nii" in refused(of_volume, bombs.VOLUMES[name](tmp_path))


@pytest.mark.parametrize("name", bombs.LISTS)
def test_a_datalist_ends_in_sentences(tmp_path: Path, name: str) -> None:
    assert "a.json" in refused(of_datalist, bombs.LISTS[name](tmp_path))


@pytest.mark.parametrize("name", bombs.LISTS)
def test_a_public_datalist_ends_in_sentences(tmp_path: Path, name: str) -> None:
    assert str(tmp_path) in refused(of_public, bombs.LISTS[name](tmp_path), "datalist")


@pytest.mark.parametrize("name", bombs.TABLES)
def test_a_csv_ends_in_sentences(tmp_path: Path, name: str) -> None:
    refused(of_table, bombs.TABLES[name](tmp_path))


@pytest.mark.parametrize("name", bombs.YAML)
def test_yaml_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(bombs.YAML[name], encoding="utf-8", errors="surrogatepass")
    assert "a.yaml" in refused(of_yaml, path)


@pytest.mark.parametrize("name", bombs.TARS)
def test_an_archive_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(bombs.TARS[name])
    refused(of_public, tmp_path / "a.tar", "tar")


def test_a_gzipped_archive_of_zeros_is_not_read_to_its_end(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(bombs.member("zeros", 2**31).tobuf(tarfile.GNU_FORMAT))
        for _ in range(2**4):
            file.write(bytes(2**20))
    assert "members have more than" in refused(of_public, tmp_path / "a.tar.gz", "tar")


@pytest.mark.parametrize("name", bombs.NEVER_ENDING)
@pytest.mark.parametrize(("file", "read"), [
    ("a.png", of_picture), ("a.jpg", of_picture), ("a.nii", of_volume), ("a.nii.gz", of_volume), ("a.dcm", of_volume), ("a.json", of_datalist),
    ("a.csv", of_table), ("a.yaml", of_yaml)], ids=lambda value: value if isinstance(value, str) else "")
def test_what_never_ends_is_not_waited_for(tmp_path: Path, name: str, file: str, read: Callable[[Path], str]) -> None:
    assert file in refused(read, bombs.NEVER_ENDING[name](tmp_path, file))


def test_a_few_honest_aliases_and_merges_are_read() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, z: 3}\nc: [*a, *a]\n"
    assert mapping_in(text, "a.yaml")["b"] == {"x": 1, "y": [1, 2], "z": 3}


def test_threads_share_a_number_of_bytes() -> None:
    budget, most, now = BytesInFlight(100), 0, 0
    lock = threading.Lock()

    def work(wanted: int) -> None:
        nonlocal most, now
        for _ in range(50):
            with budget.reserved(wanted):
                with lock:
                    now += min(wanted, 100)
                    most = max(most, now)
                with lock:
                    now -= min(wanted, 100)

    threads = [threading.Thread(target=work, args=(wanted,)) for wanted in (30, 40, 50, 100, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert 0 < most <= 100


@pytest.mark.parametrize("kind", ["png", "jpeg", "nifti", "nifti.gz", "csv", "json", "yaml"])
def test_random_changes_end_in_a_picture_or_in_one_sentence(tmp_path: Path, kind: str) -> None:
    """A fuzz target for each reader: seeds of ours with random bytes changed, cut or doubled."""
    seeds = {
        "png": bombs.png(8, 8, data=b"\0" * 25 * 8), "jpeg": bombs.jpeg(16, 16), "nifti": bombs.fine_grid(1.0, 10),
        "nifti.gz": gzip.compress(bombs.fine_grid(1.0, 10)), "csv": b"image,label\na.png,0\nb.png,1\n",
        "json": b'{"training": [{"image": "a.png", "label": 0}], "test": []}', "yaml": b"name: a\nb: &b [1, 2]\nc: {<<: {x: 1}, y: *b}\n"}
    readers: dict[str, tuple[str, Callable[[Path], str]]] = {
        "png": ("a.png", of_picture), "jpeg": ("a.jpg", of_picture), "nifti": ("a.nii", of_volume), "nifti.gz": ("a.nii.gz", of_volume),
        "csv": ("a.csv", of_table), "json": ("a.json", of_datalist), "yaml": ("a.yaml", of_yaml)}
    name, read = readers[kind]
    refused(_fuzzed, seeds[kind], tmp_path / name, read)


def _fuzzed(seed: bytes, path: Path, read: Callable[[Path], str]) -> str:
    """How many changed files were read to an end; anything but an error of ours is raised."""
    random = np.random.default_rng(0)
    for _ in range(300):
        body = bytearray(seed)
        for _ in range(int(random.integers(1, 6))):
            place = int(random.integers(len(body)))
            body[place] = int(random.integers(256))
        if random.random() < 0.2:
            body = body[: int(random.integers(len(body)))]
        if random.random() < 0.1:
            body += bytes(body)
        path.write_bytes(body)
        with contextlib.suppress(ConfigError, DataError):
            read(path)
    return "300 read"
