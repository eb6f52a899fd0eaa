"""A DICOM series as one volume: a folder of slices, or one multi-frame file; and a single grey image. Called by `volumes` and by deployment.

Geometry comes from positions and orientations alone, never from the order of names or numbers; a series whose slices do not lie on one regular grid
is refused. pydicom parses files and decodes pixels. Numbers are read here, from a file's own bytes: pydicom's rules for them are one switch for
the whole process, which other threads move, and it drops what it thinks too long. What it only warns about is refused.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.budget import (
    MOST_MEMBERS,
    MOST_VOLUME_BYTES,
    MOST_VOXELS,
    foreign,
    jpeg_size,
    require_inflated,
    require_regular,
)
from fedhelp_core.data.gdcm_process import GdcmProcess
from fedhelp_core.data.grid import Volume
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.printable import first_line

_NO_SLICES = ("dicomdir", "thumbs.db", "desktop.ini")
"""Files that CDs and file managers put beside slices."""
_BY_PLUGIN = {
    "1.2.840.10008.1.2.4.80": "pyjpegls", "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pillow", "1.2.840.10008.1.2.4.91": "pillow"}
"""Transfer syntax (JPEG-LS, JPEG 2000) -> pydicom's plugin: its first choice, GDCM, ends the whole process on some damaged streams of these."""
_BY_GDCM = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
"""Transfer syntaxes (JPEG of 12 bits, lossless JPEG) that GDCM alone decodes, in a process of its own."""
_GDCM = GdcmProcess()
_COMMON = (("BitsAllocated", "0028,0100"), ("BitsStored", "0028,0101"), ("HighBit", "0028,0102"), ("PixelRepresentation", "0028,0103"))
_SCALES = (("RescaleSlope", "0028,1053"), ("RescaleIntercept", "0028,1052"))
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_PARALLEL = 1e-4  # how far orientations of one series, which are written with six digits, may differ in a component
_UNEVEN = 0.1     # of the usual distance: how far two neighbouring slices may be nearer or farther
_OFF_GRID = 0.25  # of the usual distance: how far a slice may lie from its place on the regular grid
_SAME_PLACE = 0.01  # of a pixel: nearer slices are the same slice
_LONGEST = 400  # characters: six numbers of sixty
_PREAMBLE = 132  # bytes before the head: 128 of anything, DICM
_MOST_META = 2**16  # bytes of a head, which names the file and how it is written
_MOST_INFLATED = 2**30  # bytes of a data set that is deflated as a whole, which reports are, and images seldom
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LOCK = threading.Lock()  # warnings are kept or dropped for the whole process


@dataclass(frozen=True)
class _Plane:
    """One slice, wherever it was stored."""

    name: str
    file: Path
    frame: int
    """In the file, from 0."""
    rows: int
    columns: int
    position: NDArray[np.float64]
    """Of the first pixel's centre, mm, LPS+."""
    along_row: NDArray[np.float64]
    down_column: NDArray[np.float64]
    between_columns: float
    between_rows: float
    pixels_YX: NDArray[np.float32]
    facts: tuple[tuple[str, str], ...]
    """What all slices of a series have in common: (what, value)."""
    inverted: bool


def read_series(path: Path, *, labels: bool = False) -> Volume:
    """The volume in the folder or multi-frame file at `path`. `labels`: it is a mask, whose numbers mean what they are.

    Raises:
        Unusable: it cannot be read as exactly one volume.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not used here; pixels are decoded with warnings as errors
        planes = list(_within_budget((plane for file in _files(path) for plane in _planes(file, path, labels=labels)), path))
    _require_one_series(planes, path)
    planes, step = _stacked(planes, path)
    first = planes[0]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.along_row * first.between_columns, first.down_column * first.between_rows
    affine[:3, 2], affine[:3, 3] = step, first.position
    notes = ("MONOCHROME1 (0028,0004): intensities turned round",) if first.inverted else ()
    voxels = np.stack([plane.pixels_YX.T for plane in planes], axis=-1)
    slices = tuple((plane.file, plane.frame) for plane in planes)
    return Volume(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, notes, slices)  # DICOM's patient axes point left and back


def is_dicom(path: Path) -> bool:
    """Whether the file at `path` says in its head that it is DICOM; False where it cannot be read."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(_PREAMBLE)[-4:] == b"DICM"
    except OSError:
        return False


def is_multiframe(path: Path) -> bool:
    """Whether the DICOM file at `path` says that it holds several frames; False where it cannot be read."""
    import pydicom

    try:
        with foreign(Unusable):
            require_regular(path, MOST_VOLUME_BYTES, Unusable)
            _require_plausible_inflation(path, Unusable)
            document = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
            return int(document.get("NumberOfFrames") or 1) > 1
    except Unusable:
        return False


def read_image(path: Path) -> NDArray[np.uint8]:
    """The single grey image (H, W) in a DICOM file, an X-ray mostly, as viewers show it.

    Between black and white lies what the file's window (0028,1050) says; without one, all values that its bits can hold.

    Raises:
        Unusable: it cannot be read as exactly one grey image.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _opened(path, path, labels=False) as file:
            return file.image()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and not _is_no_slice(file.relative_to(path)))
    if not found:
        raise Unusable(f"{path}: holds no DICOM file; correct the list or the folder")
    if len(found) > MOST_MEMBERS:
        raise Unusable(f"{path}: holds {len(found):,} files, at most {MOST_MEMBERS:,} expected; keep one series' slices in it and nothing else")
    return found


def _within_budget(planes: Iterator[_Plane], path: Path) -> Iterator[_Plane]:
    """`planes`, as long as all of them together are one volume's."""
    voxels = 0
    for plane in planes:
        voxels += plane.rows * plane.columns
        if voxels > MOST_VOXELS:
            raise Unusable(f"{path}: its slices have more than {MOST_VOXELS:,} voxels together; keep one series' slices in it and nothing else")
        yield plane


def _is_no_slice(inside: Path) -> bool:
    return inside.name.lower() in _NO_SLICES or any(part.startswith(".") or part == "__MACOSX" for part in inside.parts)


@contextmanager
def _opened(file: Path, path: Path, *, labels: bool) -> Iterator[_File]:
    """The DICOM file `file` of the series at `path`; whatever a library raises inside is told as this file's fault.

    Raises:
        Unusable: it is none, or is damaged.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    def wrong(why: str) -> Unusable:
        return Unusable(f"{file}: cannot be read as DICOM ({why}); replace it")

    with foreign(wrong, Unusable, InvalidDicomError):
        require_regular(file, MOST_VOLUME_BYTES, wrong)
        _require_plausible_inflation(file, wrong)
        try:
            document = pydicom.dcmread(file)
        except InvalidDicomError:
            raise Unusable(f"{file}: is no DICOM file (no DICM in its head); keep one series' slices in {path} and nothing else") from None
        yield _File(document, file, path, labels=labels)


def _planes(file: Path, path: Path, *, labels: bool) -> Iterator[_Plane]:
    """The slices in one file."""
    with _opened(file, path, labels=labels) as opened:
        planes = opened.planes()
        while (plane := next(planes, None)) is not None:
            yield plane


def _require_plausible_inflation(file: Path, wrong: Callable[[str], Unusable]) -> None:
    """pydicom inflates a deflated data set at once, whatever it holds: nothing where that is not too much."""
    with file.open("rb") as handle:
        head = handle.read(_PREAMBLE + 12)
        meta = handle.read(min(int.from_bytes(head[-4:], "little"), _MOST_META)) if head[_PREAMBLE : _PREAMBLE + 4] == b"\2\0\0\0" else b""
        start = _PREAMBLE + 12 + len(meta)
        if _DEFLATED not in meta and _DEFLATED in handle.read(_MOST_META):
            raise wrong("its head does not say how long it is (0002,0000)")
        if _DEFLATED in meta:
            handle.seek(start)
            require_inflated(handle.read(), _MOST_INFLATED, wrong)


class _File:
    """One DICOM file: its tags as the bytes say, its slices."""

    def __init__(self, document: Any, file: Path, path: Path, *, labels: bool) -> None:
        self._document = document
        self._file = file
        self._name = str(file if file == path else file.relative_to(path))
        self._labels = labels

    def image(self) -> NDArray[np.uint8]:
        """As `read_image`."""
        inverted = self._grey() == "MONOCHROME1"
        frames = self._whole(self._document, "NumberOfFrames", 1)
        if frames != 1:
            raise self._unusable("NumberOfFrames", f"is {frames}, one image expected; export the image that is meant alone")
        stored_YX = self._stored(1)[0]
        measured_YX = self._intensities(stored_YX, [self._document], inverted=False)
        low, high = self._shown_range()
        shown_YX = ((measured_YX - low) / (high - low) * 255).round().clip(0, 255).astype(np.uint8)
        return 255 - shown_YX if inverted else shown_YX

    def _shown_range(self) -> tuple[float, float]:
        """The intensities that viewers show black and white."""
        if "WindowCenter" in self._document and "WindowWidth" in self._document:
            centre, width = (float(self._numbers([self._document], name, None, "")[0]) for name in ("WindowCenter", "WindowWidth"))
            if width < 1:
                raise self._unusable("WindowWidth", f"is {width:g}, at least 1 expected; export it again")
            return centre - 0.5 - (width - 1) / 2, centre - 0.5 + max(width - 1, 1e-6) / 2  # of width 1 a threshold (DICOM PS3.3, C.11.2.1.2)
        if "VOILUTSequence" in self._document:
            raise self._unusable("VOILUTSequence", "is there without a window (0028,1050), which is not read; export it as PNG")
        ends = self._intensities(np.array([self._range()]), [self._document], inverted=False)[0]
        return float(ends.min()), float(ends.max())

    def _grey(self) -> str:
        """How the file's grey is meant.

        Raises:
            Unusable: it is not grey, or its numbers mean what only a table says.
        """
        photometric = self._text(self._document, "PhotometricInterpretation")
        if self._whole(self._document, "SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise self._unusable("PhotometricInterpretation", f"is {photometric or 'missing'}, MONOCHROME2 or MONOCHROME1 expected")
        if photometric == "MONOCHROME1" and self._labels:
            raise self._unusable("PhotometricInterpretation", "is MONOCHROME1, which leaves open what 0 means in a mask; write it as MONOCHROME2")
        for tag in ("ModalityLUTSequence", "SegmentSequence"):
            if tag in self._document:
                raise self._unusable(tag, "is there, which is not read; export plain slices or NIfTI")
        return photometric

    def planes(self) -> Iterator[_Plane]:
        """In the file's order."""
        photometric = self._grey()
        inverted = photometric == "MONOCHROME1"
        groups = self._document.get("PerFrameFunctionalGroupsSequence")
        frames = self._whole(self._document, "NumberOfFrames", 1)
        if frames > 1 and groups is None:
            raise self._unusable("PerFrameFunctionalGroupsSequence", f"is missing, so nobody knows where its {frames} frames lie; export it again")
        if groups is not None and len(groups) != frames:
            raise self._unusable("PerFrameFunctionalGroupsSequence", f"describes {len(groups)} of {frames} frames; export it again")
        stored = self._stored(frames)
        for number in range(frames):
            yield self._plane(stored[number], groups, number, inverted=inverted, photometric=photometric)

    def _plane(self, stored_YX: NDArray[Any], groups: Any, number: int, *, inverted: bool, photometric: str) -> _Plane:
        shared = self._document.get("SharedFunctionalGroupsSequence") or ()
        places = [self._document] if groups is None else [groups[number], *shared, self._document]
        orientation = self._numbers(places, "ImageOrientationPatient", 6, "PlaneOrientationSequence")
        position = self._numbers(places, "ImagePositionPatient", 3, "PlanePositionSequence")
        between_rows, between_columns = self._numbers(places, "PixelSpacing", 2, "PixelMeasuresSequence")
        if min(between_rows, between_columns) <= 0:
            raise self._unusable("PixelSpacing", f"is {between_rows:g} x {between_columns:g}, positive numbers expected; export it again")
        along_row, down_column = orientation[:3], orientation[3:]
        lengths = float(np.linalg.norm(along_row)), float(np.linalg.norm(down_column))
        if max(abs(length - 1) for length in lengths) > _PARALLEL * 10 or abs(float(along_row @ down_column)) > _PARALLEL * 10:
            raise self._unusable("ImageOrientationPatient", f"is {_listed(orientation)}, two directions at right angles expected; export it again")
        return _Plane(
            self._name if groups is None else f"{self._name}, frame {number + 1}", self._file, number, stored_YX.shape[0], stored_YX.shape[1],
            position, along_row / lengths[0], down_column / lengths[1], float(between_columns), float(between_rows),
            self._intensities(stored_YX, places, inverted=inverted),
            (("SeriesInstanceUID (0020,000E)", self._text(self._document, "SeriesInstanceUID")),
             ("FrameOfReferenceUID (0020,0052)", self._text(self._document, "FrameOfReferenceUID")),
             ("PhotometricInterpretation (0028,0004)", photometric),
             *((f"{name} ({tag})", str(self._whole(self._document, name, ""))) for name, tag in _COMMON),
             *((f"{name} ({tag})", self._scale(places, name)) for name, tag in _SCALES)),
            inverted)

    def _scale(self, places: Sequence[Any], name: str) -> str:
        """Of CT, where Hounsfield units are the same in all slices, the number; else whether it is there: PET scales each slice by itself."""
        place = self._place_of(places, name, "PixelValueTransformationSequence")
        if place is None or self._text(self._document, "Modality") != "CT":
            return "" if place is None else "there"
        return f"{float(self._numbers(places, name, 1, 'PixelValueTransformationSequence')[0]):g}"

    def _stored(self, frames: int) -> NDArray[Any]:
        """Stored values (frames, rows, columns), in the bits that are in use."""
        from pydicom import pixels

        document = self._document
        tag = next((name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in document), None)
        if tag is None:
            raise self._unusable("PixelData", "is missing; export it again")
        rows, columns = self._whole(document, "Rows"), self._whole(document, "Columns")
        if rows * columns * frames > MOST_VOXELS or min(rows, columns, frames) < 1:
            raise self._unusable("Rows", f"and columns, frames make {rows} x {columns} x {frames} pixels, 1 to {MOST_VOXELS:,} expected")
        allocated = self._whole(document, "BitsAllocated")
        used = self._whole(document, "BitsStored") if tag == "PixelData" else allocated
        highest = self._whole(document, "HighBit", used - 1) if tag == "PixelData" else used - 1
        signed = self._whole(document, "PixelRepresentation") if tag == "PixelData" else 1
        if allocated not in (8, 16, 32, 64) or not 1 <= used <= highest + 1 <= allocated or signed not in (0, 1):
            raise self._unusable("BitsAllocated", f"is {allocated}, BitsStored {used}, HighBit {highest}; export 8, 16 or 32 bits a pixel")
        syntax = document.file_meta.TransferSyntaxUID
        raw = document[tag].value
        if not syntax.is_encapsulated:
            size = rows * columns * frames * allocated // 8
            if len(raw) not in (size, size + size % 2):  # an odd number of bytes is followed by one more
                raise self._unusable("PixelData", f"holds {len(raw):,} bytes, {size:,} expected; copy the file again from where it came")
        try:
            decoder: Any = pixels.get_decoder(syntax)  # type: ignore[attr-defined]  # pydicom offers it, but not to mypy
            available = decoder.is_available
        except NotImplementedError:
            available = False
        if not available:
            raise self._unusable("TransferSyntaxUID", f"is {syntax.name}, which is not read; export it without compression")
        if syntax.is_encapsulated:
            self._require_frames(raw, frames, rows, columns)
        options = {
            "rows": rows, "columns": columns, "number_of_frames": frames, "samples_per_pixel": 1, "bits_allocated": allocated, "bits_stored": used,
            "photometric_interpretation": "MONOCHROME2", "pixel_representation": signed, "pixel_keyword": tag, "planar_configuration": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "The number of bytes of compressed pixel data matches")  # noise, which nothing makes smaller
            try:
                if str(syntax) in _BY_GDCM:
                    decoded = _GDCM.decode(raw, str(syntax), options)
                else:
                    decoded, _ = decoder.as_array(raw, raw=True, decoding_plugin=_BY_PLUGIN.get(str(syntax), ""), **options)
            except Exception as e:  # decoders raise whatever their libraries raise
                raise self._unusable("PixelData", f"cannot be decoded ({syntax.name}: {first_line(e)}); export it without compression") from None
        stored = np.asarray(decoded).reshape(frames, rows, columns)
        return _in_use(stored, used, highest, signed=bool(signed)) if tag == "PixelData" else stored

    def _require_frames(self, raw: bytes, frames: int, rows: int, columns: int) -> None:
        """Each compressed frame announces the size that the file does: its decoder would allocate by its own word."""
        from pydicom.encaps import generate_frames

        for frame in generate_frames(raw, number_of_frames=frames):
            width, height = _announced(frame)
            if (width, height) not in ((0, 0), (columns, rows)):
                raise self._unusable("PixelData", f"has a frame of {width} x {height} pixels, {columns} x {rows} expected; export it again")

    def _intensities(self, stored_YX: NDArray[Any], places: Sequence[Any], *, inverted: bool) -> NDArray[np.float32]:
        """What the scanner measured."""
        group = "PixelValueTransformationSequence"
        slope = float(self._numbers(places, "RescaleSlope", 1, group)[0]) if self._place_of(places, "RescaleSlope", group) else 1.0
        intercept = float(self._numbers(places, "RescaleIntercept", 1, group)[0]) if self._place_of(places, "RescaleIntercept", group) else 0.0
        if slope == 0:
            raise self._unusable("RescaleSlope", "is 0, so every voxel would be the same; export it again")
        measured = stored_YX.astype(np.float64) * slope + intercept
        if not self._labels:
            measured = self._without_padding(stored_YX, measured)
        if inverted:
            ends = self._range()
            measured = (ends[0] + ends[1]) * slope + 2 * intercept - measured
        return measured.astype(np.float32)

    def _range(self) -> tuple[float, float]:
        """The least and the largest value that a pixel can hold."""
        bits, signed = self._whole(self._document, "BitsStored"), self._whole(self._document, "PixelRepresentation")
        return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)

    def _without_padding(self, stored_YX: NDArray[Any], measured: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels outside the scanner's field of view, which hold a made-up number, as dark as the darkest that was measured."""
        if "PixelPaddingValue" not in self._document or "PixelData" not in self._document:
            return measured
        ends = [self._whole(self._document, "PixelPaddingValue"), self._whole(self._document, "PixelPaddingRangeLimit", None)]
        if self._whole(self._document, "PixelRepresentation"):
            ends = [None if end is None else (end ^ 0x8000) - 0x8000 for end in ends]
        low, high = sorted((ends[0], ends[0] if ends[1] is None else ends[1]))
        padding = (stored_YX >= low) & (stored_YX <= high)
        if padding.any() and not padding.all():
            measured = np.where(padding, measured[~padding].min(), measured)
        return measured

    def _place_of(self, places: Sequence[Any], name: str, group: str) -> Any:
        """The data set that holds the element `name`: a functional group of a multi-frame file, or the file's own."""
        for place in places:
            inside = place.get(group)
            if inside and name in inside[0]:
                return inside[0]
            if name in place:
                return place
        return None

    def _numbers(self, places: Sequence[Any], name: str, count: int | None, group: str) -> NDArray[np.float64]:
        """The `count` decimal numbers of element `name`, from its bytes; None: one or more."""
        place = self._place_of(places, name, group)
        if place is None:
            raise self._unusable(name, "is missing; export it again from the scanner's archive")
        text = self._text(place, name)
        parts = [part.strip() for part in text.split("\\")]
        if len(parts) != (count or len(parts)) or not all(_NUMBER.fullmatch(part) for part in parts):
            raise self._unusable(name, f"is {text!r}, {count or 'plain'} numbers expected; export it again")
        return np.array([float(part) for part in parts])

    def _whole(self, place: Any, name: str, missing: Any = ...) -> Any:
        """The unsigned number of element `name`, from its bytes."""
        raw = _value_of(place, name)
        if isinstance(raw, int):  # pydicom looks at some of them itself, to find out what others mean
            return raw & 0xFFFF
        if not raw:
            if missing is ...:
                raise self._unusable(name, "is missing; export it again from the scanner's archive")
            return missing
        if name == "NumberOfFrames":  # the only one that is written in digits
            text = raw.decode("ascii", "replace").strip(" \0")
            if not text.isdecimal():
                raise self._unusable(name, f"is {text!r}, a number expected; export it again")
            return int(text)
        if len(raw) != 2:
            raise self._unusable(name, f"has {len(raw)} bytes, 2 expected; export it again")
        return int.from_bytes(raw, "little" if self._document.original_encoding[1] else "big")

    def _text(self, place: Any, name: str) -> str:
        value = _value_of(place, name)
        text = (value if isinstance(value, bytes) else b"").decode("ascii", "replace").strip(" \0")
        return "".join(sign if sign.isprintable() else "?" for sign in text[:_LONGEST])

    def _unusable(self, name: str, says: str) -> Unusable:
        from pydicom.datadict import tag_for_keyword

        tag = tag_for_keyword(name) or 0
        return Unusable(f"{self._file}: {name} ({tag >> 16:04X},{tag & 0xFFFF:04X}) {says}")


def _value_of(place: Any, name: str) -> Any:
    """An element's value as it lies in the file: bytes, unless pydicom needed it."""
    from pydicom.datadict import tag_for_keyword

    element = place.get_item(tag_for_keyword(name))
    return None if element is None else element.value


def _in_use(stored: NDArray[Any], used: int, highest: int, *, signed: bool) -> NDArray[Any]:
    """Values without what lies in the bits beside them, which old scanners used for overlays."""
    allocated = stored.dtype.itemsize * 8
    if used == allocated:
        return stored
    whole = stored.astype(np.int64) >> (highest + 1 - used)
    whole &= (1 << used) - 1
    return np.where(whole >> (used - 1), whole - (1 << used), whole) if signed else whole


def _require_one_series(planes: Sequence[_Plane], path: Path) -> None:
    first = planes[0]
    for plane in planes[1:]:
        for (what, one), (_, other) in zip(first.facts, plane.facts, strict=True):
            if one != other:
                _mixed(path, first, plane, what, one, other)
        if (plane.rows, plane.columns) != (first.rows, first.columns):
            _mixed(path, first, plane, "Rows x Columns (0028,0010)", f"{first.rows} x {first.columns}", f"{plane.rows} x {plane.columns}")
        spacings = [np.array([one.between_rows, one.between_columns]) for one in (first, plane)]
        if not np.allclose(spacings[0], spacings[1], rtol=1e-3):
            _mixed(path, first, plane, "PixelSpacing (0028,0030)", _listed(spacings[0]), _listed(spacings[1]))
        directions = [np.concatenate([one.along_row, one.down_column]) for one in (first, plane)]
        if np.abs(directions[0] - directions[1]).max() > _PARALLEL * 10:
            _mixed(path, first, plane, "ImageOrientationPatient (0020,0037)", _listed(directions[0]), _listed(directions[1]))


def _mixed(path: Path, first: _Plane, other: _Plane, what: str, one: str, two: str) -> None:
    raise Unusable(
        f"{path}: {what} is {one or 'missing'} in {first.name} and {two or 'missing'} in {other.name}; keep one series' slices in it, nothing else")


def _stacked(planes: Sequence[_Plane], path: Path) -> tuple[list[_Plane], NDArray[np.float64]]:
    """By position, and the step from one slice to the next, mm, LPS+."""
    normal = np.cross(planes[0].along_row, planes[0].down_column)
    ordered = sorted(planes, key=lambda plane: float(plane.position @ normal))
    if len(ordered) == 1:
        raise Unusable(f"{path}: is {planes[0].columns} x {planes[0].rows} x 1 voxels; a slice is no volume")
    heights = np.array([float(plane.position @ normal) for plane in ordered])
    distances = np.diff(heights)
    usual = float(np.median(distances))
    pixel = min(planes[0].between_rows, planes[0].between_columns)
    for number in np.flatnonzero(distances < _SAME_PLACE * pixel):
        raise Unusable(
            f"{path}: {ordered[number].name} and {ordered[number + 1].name} lie in the same place (ImagePositionPatient (0020,0032)), as copies,"
            " echoes or points in time do; keep one volume's slices")
    for number in np.flatnonzero(np.abs(distances - usual) > _UNEVEN * usual):
        raise Unusable(
            f"{path}: {ordered[number].name} and {ordered[number + 1].name} lie {distances[number]:g} mm apart, others {usual:g}"
            " (ImagePositionPatient (0020,0032)); slices are missing, or are not one volume's")
    places = np.array([plane.position for plane in ordered])
    regular = heights[0] + np.arange(len(ordered)) * (heights[-1] - heights[0]) / (len(ordered) - 1)
    if np.abs(heights - regular).max() > _OFF_GRID * usual:
        raise Unusable(f"{path}: its slices do not lie at regular distances (ImagePositionPatient (0020,0032)); resample it onto a regular grid")
    step = (places[-1] - places[0]) / (len(ordered) - 1)
    aside = places - places[0] - np.outer(np.arange(len(ordered)), step)
    if np.abs(aside - np.outer(aside @ normal, normal)).max() > pixel / 2:
        raise Unusable(f"{path}: its slices do not lie above each other (ImagePositionPatient (0020,0032)); keep one volume's slices")
    return ordered, step


def _announced(frame: bytes) -> tuple[int, int]:
    """Width and height by the header of a JPEG, JPEG-LS or JPEG 2000 frame; zeros where it has none."""
    if frame[:2] == b"\xff\xd8":
        return jpeg_size(frame)[:2]
    codestream = frame.find(b"\xff\x4f\xff\x51", 0, _MOST_META)  # SOC and SIZ, alone or in a .jp2's boxes
    if codestream < 0 or len(frame) < codestream + 24:
        return 0, 0
    right, bottom, left, top = struct.unpack(">IIII", frame[codestream + 8 : codestream + 24])
    return max(0, right - left), max(0, bottom - top)


def _listed(numbers: NDArray[np.float64]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
