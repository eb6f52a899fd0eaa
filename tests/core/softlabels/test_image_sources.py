"""Public images from CIFAR's binary files, tar shards and datalists, known by their content wherever they lie."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhelp_core.errors import DataError
from fedhelp_core.softlabels.public_images import PublicImages, read_public_images
from tests.core.softlabels.helpers import PICTURES, draw, pictures

CIFAR_SIDE = 32


def shades(images: PublicImages) -> list[int]:
    return sorted(int(image[0, 0, 0]) for image in images.pixels(range(len(images.hashes))))


def cifar_rows(pictures_NHWC: NDArray[np.uint8], label_bytes: int) -> bytes:
    """As the dataset's own page describes its binary version: labels, then red, green and blue planes, row by row."""
    return b"".join(bytes(range(label_bytes)) + picture.transpose(2, 0, 1).tobytes() for picture in pictures_NHWC)


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return path


@pytest.fixture
def drawn(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(draw(tmp_path / "drawn", 0, 64, 128).iterdir())}


class TestCifar:
    @pytest.mark.parametrize(("layout", "label_bytes"), [("cifar10", 1), ("cifar100", 2)])
    def test_rows_are_pictures_channel_by_channel(self, tmp_path: Path, layout: str, label_bytes: int) -> None:
        pictures_NHWC = np.random.default_rng(0).integers(0, 256, (5, CIFAR_SIDE, CIFAR_SIDE, 3), dtype=np.uint8)
        (tmp_path / "data_batch_1.bin").write_bytes(cifar_rows(pictures_NHWC[:3], label_bytes))
        (tmp_path / "data_batch_2.bin").write_bytes(cifar_rows(pictures_NHWC[3:], label_bytes))
        images = read_public_images(tmp_path, pictures(CIFAR_SIDE), layout=layout)
        found = {picture.tobytes() for picture in images.pixels(range(5))}
        assert found == {picture.tobytes() for picture in pictures_NHWC}

    def test_a_file_of_the_other_layout_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "train.bin").write_bytes(cifar_rows(np.zeros((3, CIFAR_SIDE, CIFAR_SIDE, 3), np.uint8), 2))
        with pytest.raises(DataError, match=r"train\.bin: 9222 bytes, a multiple of 3073 expected; is it the binary version, and layout right\?"):
            read_public_images(tmp_path, PICTURES, layout="cifar10")

    def test_a_folder_without_binary_files_says_what_is_expected(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"at least one file \*\.bin expected, found none; correct public_set\.images"):
            read_public_images(tmp_path, PICTURES, layout="cifar10")


class TestTar:
    @pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
    def test_members_are_the_images_that_they_are_in_a_folder(self, tmp_path: Path, drawn: dict[str, bytes], name: str, mode: str) -> None:
        (tmp_path / "tar").mkdir()
        tar_of(tmp_path / "tar" / name, {"deep/" + key: body for key, body in drawn.items()} | {"labels.json": b"{}"}, mode)
        images = read_public_images(tmp_path / "tar", PICTURES, layout="tar")
        assert shades(images) == [0, 64, 128]
        assert images.hashes == read_public_images(tmp_path / "drawn", PICTURES).hashes

    def test_an_image_in_two_shards_is_one(self, tmp_path: Path, drawn: dict[str, bytes]) -> None:
        (tmp_path / "tar").mkdir()
        for name in ("a.tar", "b.tar"):
            tar_of(tmp_path / "tar" / name, drawn)
        images = read_public_images(tmp_path / "tar", PICTURES, layout="tar")
        assert (len(images.hashes), images.duplicates) == (3, 3)

    def test_links_are_not_followed_and_names_lead_nowhere(self, tmp_path: Path, drawn: dict[str, bytes]) -> None:
        path = tar_of(tmp_path / "a.tar", {"../../escape.png": drawn["064.png"]})
        with tarfile.open(path, "a") as archive:
            for kind, target in ((tarfile.SYMTYPE, str(tmp_path / "drawn" / "000.png")), (tarfile.LNKTYPE, "../../escape.png")):
                link = tarfile.TarInfo("link.png")
                link.type, link.linkname = kind, target
                archive.addfile(link)
        before = set(tmp_path.rglob("*"))
        assert shades(read_public_images(path, PICTURES, layout="tar")) == [64]
        assert set(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("change", [lambda body: body[:-700], lambda _: b"no tar file at all", lambda _: b""], ids=["cut off", "other", "empty"])
    def test_a_broken_file_is_named(self, tmp_path: Path, drawn: dict[str, bytes], change: Any) -> None:
        path = tar_of(tmp_path / "a.tar.gz", drawn | {"noise.png": os.urandom(5000)}, "w:gz")
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(DataError, match=r"a\.tar\.gz: cannot be read as a tar file"):
            read_public_images(path, PICTURES, layout="tar")

    def test_a_member_that_is_no_image_is_named(self, tmp_path: Path, drawn: dict[str, bytes]) -> None:
        path = tar_of(tmp_path / "a.tar", drawn | {"broken.png": b"nothing"})
        with pytest.raises(DataError, match=r"a\.tar:broken\.png: cannot be read as an image"):
            read_public_images(path, PICTURES, layout="tar")


class TestDatalist:
    def test_images_of_every_list_are_read_relative_to_the_file(self, tmp_path: Path, drawn: dict[str, bytes]) -> None:
        document = {"training": [{"image": "drawn/000.png", "label": 3}], "test": [{"image": "drawn/../drawn/128.png"}], "name": "x"}
        (tmp_path / "list.json").write_text(json.dumps(document))
        assert shades(read_public_images(tmp_path / "list.json", PICTURES, layout="datalist")) == [0, 128]

    @pytest.mark.parametrize(("document", "words"), [
        ([{"image": "../../etc/passwd"}], r"entry 0: '\.\./\.\./etc/passwd' is outside .*; list images below the datalist's folder"),
        ([{"image": "/etc/passwd"}], r"entry 0: '/etc/passwd' is outside"),
        ([{"picture": "a.png"}], r"entry 0: \{\"image\": path\} expected"),
        ({"training": ["a.png"]}, r"entry 0: \{\"image\": path\} expected, got"),
        ({}, r"no list of \{\"image\": path\} in it"),
        (3, r"no list of \{\"image\": path\} in it"),
        ([{"image": "absent.png"}], "absent.png: no such image file"),
    ])
    def test_an_entry_that_is_none_is_named(self, tmp_path: Path, document: Any, words: str) -> None:
        path = tmp_path / "lists" / "list.json"
        path.parent.mkdir()
        path.write_text(json.dumps(document))
        with pytest.raises(DataError, match=words):
            read_public_images(path, PICTURES, layout="datalist")

    def test_a_link_out_of_the_folder_is_refused(self, tmp_path: Path, drawn: dict[str, bytes]) -> None:
        folder = tmp_path / "lists"
        folder.mkdir()
        (folder / "link.png").symlink_to(tmp_path / "drawn" / "000.png")
        (folder / "list.json").write_text(json.dumps([{"image": "link.png"}]))
        with pytest.raises(DataError, match="is outside"):
            read_public_images(folder / "list.json", PICTURES, layout="datalist")

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000], ids=["empty", "cut off", "not text", "deep"])
    def test_a_file_that_is_no_json_says_so(self, tmp_path: Path, body: bytes) -> None:
        (tmp_path / "list.json").write_bytes(body)
        with pytest.raises(DataError, match=r"list\.json: cannot be read as JSON"):
            read_public_images(tmp_path / "list.json", PICTURES, layout="datalist")
