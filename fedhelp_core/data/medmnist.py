"""MedMNIST's own layout: one <set>.npz with train, val and test _images and _labels. Called by `public_layouts` and by `fedhelp data ingest`.

Its images are no files, so each becomes a PNG below the folder that ingest writes to: grey (N, H, W) and colour (N, H, W, 3) as they are, of a
volume (N, D, H, W) its three middle slices as red, green and blue. The archive is read image by image: the largest sets would not fit into memory.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.budget import MOST_LIST_BYTES, MOST_PIXELS, foreign
from fedhelp_core.data.items import Item
from fedhelp_core.disk import disk_errors
from fedhelp_core.errors import DataError

SPLIT_NAMES = {"training": "train", "validation": "val", "test": "test"}
_ORGANS = ("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right", "pancreas", "spleen")
LABELS: dict[str, tuple[str, ...]] = {
    "pathmnist": ("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa", "cancer-associated stroma",
                  "colorectal adenocarcinoma epithelium"),
    "dermamnist": ("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions", "dermatofibroma",
                   "melanoma", "melanocytic nevi", "vascular lesions"),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": ("basophil", "eosinophil", "erythroblast", "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "lymphocyte",
                   "monocyte", "neutrophil", "platelet"),
    "tissuemnist": ("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
                    "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb"),
    "organamnist": _ORGANS, "organcmnist": _ORGANS, "organsmnist": _ORGANS,
    "organmnist3d": ("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right", "lung-left", "spleen",
                     "pancreas"),
    "nodulemnist3d": ("benign", "malignant"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "fracturemnist3d": ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "synapsemnist3d": ("inhibitory synapse", "excitatory synapse"),
}
"""Set -> names of its class numbers, as MedMNIST has them. ChestMNIST is not among them: its images have several labels each."""


@dataclass(frozen=True)
class MedMnist:
    """One archive, its labels read."""

    path: Path
    classes: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]
    """Split -> (N,)."""

    @property
    def task(self) -> dict[str, object]:
        """The `task` section for it, named after the archive."""
        return {"name": re.sub(r"[^a-z0-9]+", "-", self.path.stem.lower()).strip("-")[:40], "form": "classes", "classes": self.classes}

    def items(self, folder: Path) -> dict[str, tuple[Item, ...]]:
        """Split -> items, with the paths that `unpack` writes below `folder`."""
        return {
            split: tuple(Item(_picture_path(folder, split, number), int(label)) for number, label in enumerate(labels))
            for split, labels in self.labels.items()}

    def unpack(self, folder: Path) -> None:
        """Write every image below `folder`, but for those that are there already with the same content.

        Raises:
            DataError: the archive is damaged.
            StorageFull: no room.
        """
        with disk_errors(folder), _opened(self.path) as archive:
            for split in self.labels:
                (folder / SPLIT_NAMES[split]).mkdir(parents=True, exist_ok=True)
                for number, image in enumerate(_images(self.path, archive, split)):
                    path = _picture_path(folder, split, number)
                    body = _png(image)
                    if not path.is_file() or path.read_bytes() != body:
                        path.write_bytes(body)


def read_medmnist(path: Path) -> MedMnist:
    """The archive at `path`, without its images.

    Raises:
        DataError: no archive of MedMNIST, or one whose images have several labels each.
    """
    labels: dict[str, NDArray[np.int64]] = {}
    with _opened(path) as archive:
        for split, name in SPLIT_NAMES.items():
            if f"{name}_images.npy" not in archive.namelist() and split == "validation":
                continue
            found = _labels(path, archive, name)
            count = _images_header(path, archive, name)[0]
            if count != len(found):
                raise DataError(f"{path}: {name}_images has {count:,} rows, {name}_labels {len(found):,}; fetch the file again")
            labels[split] = found
    known = next((LABELS[name] for name in sorted(LABELS, key=len, reverse=True) if path.stem.lower().startswith(name)), ())
    highest = max((int(found.max()) for found in labels.values() if len(found)), default=0)
    if known and highest >= len(known):
        raise DataError(f"{path}: has label {highest}, but the set has {len(known)} classes: {', '.join(known)}; is the file's name right?")
    return MedMnist(path, known or tuple(f"class {number}" for number in range(max(2, highest + 1))), labels)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file; give MedMNIST's .npz with --images") from e
    except (OSError, zipfile.BadZipFile) as e:
        raise DataError(f"{path}: cannot be read as .npz ({e}); fetch it again") from e


def _labels(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[np.int64]:
    with _member(path, archive, f"{name}_labels") as stream:
        shape, dtype = _header(path, f"{name}_labels", stream)
        if math.prod(shape) * dtype.itemsize > MOST_LIST_BYTES or dtype.kind not in "iu":
            raise DataError(f"{path}: {name}_labels should be class numbers, got {dtype} of {shape}; fetch the file again")
        if len(shape) > 1 and math.prod(shape[1:]) != 1:
            raise DataError(f"{path}: {name}_labels has {math.prod(shape[1:])} labels an image; one expected, so a set of one label each is needed")
        values = np.frombuffer(_read(path, stream, math.prod(shape) * dtype.itemsize), dtype)
    if len(values) and int(values.min()) < 0:
        raise DataError(f"{path}: {name}_labels has label {int(values.min())}; class numbers from 0 expected")
    return values.astype(np.int64)


def _images_header(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with _member(path, archive, f"{name}_images") as stream:
        return _image_shape(path, name, stream)


def _image_shape(path: Path, name: str, stream: IO[bytes]) -> tuple[int, ...]:
    shape, dtype = _header(path, f"{name}_images", stream)
    cube = len(shape) == 4 and shape[1] == shape[2] == shape[3] > 3  # (N, 3, 3, 3) would be colour
    if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3) or cube) or not 0 < math.prod(shape[1:]) <= MOST_PIXELS:
        raise DataError(f"{path}: {name}_images should be bytes (N, H, W), (N, H, W, 3) or cubes (N, D, D, D), got {dtype} of {shape}")
    return shape


def _images(path: Path, archive: zipfile.ZipFile, split: str) -> Iterator[NDArray[np.uint8]]:
    name = SPLIT_NAMES[split]
    with _member(path, archive, f"{name}_images") as stream:
        count, *shape = _image_shape(path, name, stream)
        for _ in range(count):
            yield np.frombuffer(_read(path, stream, math.prod(shape)), np.uint8).reshape(shape)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    try:
        return archive.open(f"{name}.npy")
    except KeyError:
        found = ", ".join(Path(one).stem for one in archive.namelist()[:8]) or "nothing"
        raise DataError(f"{path}: train, val and test _images and _labels expected, but {name} is missing (found {found})") from None


def _header(path: Path, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with foreign(lambda why: DataError(f"{path}: {name} cannot be read ({why}); fetch the file again")):
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    if fortran and len(shape) > 1 and math.prod(shape[1:]) != 1:
        raise DataError(f"{path}: {name} is in Fortran's order; save it again with numpy.ascontiguousarray")
    return shape, dtype


def _read(path: Path, stream: IO[bytes], size: int) -> bytes:
    with foreign(lambda why: DataError(f"{path}: cannot be read to its end ({why}); fetch it again")):
        body = stream.read(size)
    if len(body) != size:
        raise DataError(f"{path}: ends too early; fetch it again")
    return body


def _picture_path(folder: Path, split: str, number: int) -> Path:
    return folder / SPLIT_NAMES[split] / f"{SPLIT_NAMES[split]}-{number:06}.png"


def _png(image: NDArray[np.uint8]) -> bytes:
    if image.ndim == 3 and image.shape[2] != 3:
        middle = len(image) // 2
        image = np.stack((image[middle], image[:, middle], image[:, :, middle]), axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
