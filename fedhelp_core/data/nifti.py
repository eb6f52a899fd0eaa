"""NIfTI-1 and NIfTI-2 files, plain or gzipped, as volumes. Called by `volumes`.

nibabel knows the header's layout; what it repairs, guesses or never looks at is looked at here: units, types that are no plain number, two affines
that disagree, bytes that are missing or left over, and the checksum of a gzipped file. Nothing depends on the ending of the file's name.
"""

from __future__ import annotations

import gzip
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.budget import MOST_EXTENSION_BYTES, MOST_VOLUME_BYTES, MOST_VOXELS, foreign, require_inflatable, require_regular
from fedhelp_core.data.grid import Volume, require_plausible_affine, spacing_of
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.printable import first_line

_HEADER_BYTES = {348: 1, 540: 2}  # sizeof_hdr -> version of the format
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIFTI_UNITS_UNKNOWN (which is mm in practice), METER, MM, MICRON
_UNITS = {1: "m", 3: "µm"}
_SAME = 0.01  # of a voxel's side: how far pixdim and affines may differ, which are written with seven digits or fewer


def read_nifti(path: Path, channels: int = 1) -> Volume:
    """The volume in the NIfTI file at `path`; of several `channels` its fourth dimension has so many.

    Raises:
        Unusable: it cannot be read, or what it means is not certain.
    """
    wrong = _unreadable(path)
    with _quiet_nibabel(), foreign(wrong, Unusable):
        stored = require_regular(path, MOST_VOLUME_BYTES, wrong)
        with path.open("rb") as raw, _unpacked(raw) as file:
            return _volume(file, stored, path, channels)


def _unreadable(path: Path) -> Callable[[str], Unusable]:
    return lambda why: Unusable(f"{path}: cannot be read as NIfTI ({why}); replace or remove it")


def _volume(file: Any, length: int, path: Path, channels: int) -> Volume:
    """The volume in `file`, whose `length` on disk it cannot exceed, or not by more than deflating makes of it."""
    header = _header(file, path)
    shape, stored = _shape(header, path, channels), _stored_type(header, path)
    affine, notes = _affine(header, path)
    require_plausible_affine(affine, shape, path)
    slope, intercept = _scaling(header, path)
    start, size = _first_byte(header, path), int(np.prod(shape, dtype=np.int64)) * stored.itemsize
    if isinstance(file, gzip.GzipFile):
        require_inflatable(start + size, length, _unreadable(path))
    elif start + size > length:
        raise Unusable(
            f"{path}: dim and bitpix say {size:,} bytes of voxels, {max(0, length - start):,} found; copy it again from where it came")
    file.seek(start)
    body = file.read(size + 1)  # one more, so that what follows is noticed, and a gzipped file's checksum is looked at
    if len(body) != size:
        found = f"{len(body):,}" if len(body) < size else "more"
        raise Unusable(f"{path}: dim and bitpix say {size:,} bytes of voxels, {found} found; copy it again from where it came")
    voxels = np.frombuffer(body, stored).reshape(shape, order="F")
    return Volume(_scaled(voxels, slope, intercept), affine, notes)


def _header(file: Any, path: Path) -> Any:
    """nibabel's header, not repaired."""
    import nibabel
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    start = file.read(4)
    version = next((_HEADER_BYTES.get(int.from_bytes(start, order)) for order in ("little", "big")
                    if int.from_bytes(start, order) in _HEADER_BYTES), None)
    if version is None:
        raise Unusable(f"{path}: cannot be read as NIfTI (sizeof_hdr is neither 348 nor 540); replace or remove it")
    kind: Any = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    bytes_ = start + file.read((348 if version == 1 else 540) - 4)
    try:
        header = kind(bytes_, check=False)
    except (WrapStructError, HeaderDataError, ValueError) as e:
        raise Unusable(f"{path}: cannot be read as NIfTI ({first_line(e)}); replace or remove it") from None
    magic = bytes(header["magic"]).rstrip(b"\0")[:3]
    if magic != (b"n+1" if version == 1 else b"n+2"):
        kind_of_pair = "Analyze" if magic not in (b"ni1", b"ni2") else "a pair of .hdr and .img"
        raise Unusable(f"{path}: is no single NIfTI file (magic {magic!r}, {kind_of_pair}); convert it to .nii or .nii.gz")
    return header


def _shape(header: Any, path: Path, channels: int) -> tuple[int, ...]:
    dim = [int(side) for side in header["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise Unusable(f"{path}: dim {dim} makes no sense; convert it again from the scanner's files")
    shape = dim[1 : dim[0] + 1]
    if np.prod([float(side) for side in shape]) > MOST_VOXELS:
        raise Unusable(f"{path}: is {' x '.join(map(str, shape))} voxels (dim), at most {MOST_VOXELS:,} expected")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if channels > 1:
        if len(shape) != 4 or shape[3] != channels:
            raise Unusable(f"{path}: four dimensions with {channels} sequences (task.channels) expected, got {' x '.join(map(str, shape))}; give such"
                           " a file, or a file for each sequence")
        return tuple(shape)
    if len(shape) != 3:
        raise Unusable(f"{path}: three dimensions expected, got {' x '.join(map(str, shape))}; give one volume a file")
    return tuple(shape)


def _stored_type(header: Any, path: Path) -> np.dtype[Any]:
    from nibabel.spatialimages import HeaderDataError

    code = int(header["datatype"])
    try:
        stored = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError, TypeError):
        raise Unusable(f"{path}: datatype {code} is none that NIfTI knows; convert it again") from None
    if stored.kind not in "iuf" or stored.itemsize > 8:
        label = "colours (RGB)" if stored.names else str(stored)
        raise Unusable(f"{path}: its voxels are {label} (datatype {code}), one plain number a voxel expected; convert it to a grey volume")
    if int(header["bitpix"]) != 8 * stored.itemsize:
        raise Unusable(f"{path}: bitpix is {int(header['bitpix'])}, but datatype {code} has {8 * stored.itemsize} bits; convert it again")
    ordered: np.dtype[Any] = stored.newbyteorder(header.endianness)
    return ordered


def _first_byte(header: Any, path: Path) -> int:
    offset, least = float(header["vox_offset"]), int(header["sizeof_hdr"]) + 4  # four bytes say whether extensions follow
    if not np.isfinite(offset) or offset != int(offset) or not least <= offset <= MOST_EXTENSION_BYTES:
        raise Unusable(f"{path}: vox_offset is {offset:g}, a whole number from {least} to {MOST_EXTENSION_BYTES} expected; convert it again")
    return int(offset)


def _scaling(header: Any, path: Path) -> tuple[float, float]:
    """scl_slope and scl_inter; (1, 0) where the slope is 0, which is how NIfTI says that there is none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:
        return 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(intercept):
        raise Unusable(f"{path}: scl_slope is {slope:g} and scl_inter {intercept:g}, so nobody knows its intensities; convert it again")
    return slope, intercept


def _scaled(voxels: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    if (slope, intercept) != (1.0, 0.0):
        exact = np.dtype(np.float32 if voxels.dtype.itemsize <= 2 else np.float64)  # float32 holds every 16-bit number
        voxels = voxels.astype(exact)
        voxels *= slope
        voxels += intercept
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        return voxels.astype(np.float32)


def _affine(header: Any, path: Path) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """To mm, RAS+, and what was converted. sform where there are both, which must say the same."""
    from nibabel.spatialimages import HeaderDataError

    sides = np.asarray(header["pixdim"][1:4], np.float64)
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise Unusable(f"{path}: pixdim is {_listed(sides)}, positive numbers expected; convert it again")
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # as NIfTI says of the q-form's handedness
    try:
        forms = {name: affine for name, affine in (("sform", header.get_sform(coded=True)[0]), ("qform", header.get_qform(coded=True)[0]))
                 if affine is not None}
    except (HeaderDataError, ValueError) as e:
        raise Unusable(f"{path}: its qform cannot be used ({first_line(e)}); convert it again") from None
    if not forms:
        raise Unusable(f"{path}: has no affine (qform and sform codes are 0), so nobody knows how it lies; convert it again")
    for name, affine in forms.items():
        if not np.isfinite(affine).all():
            raise Unusable(f"{path}: its affine cannot be inverted ({name} is not finite); convert it again from the scanner's files")
        if not np.allclose(spacing_of(affine), sides, rtol=_SAME):
            raise Unusable(
                f"{path}: pixdim says {_listed(sides)}, {name} {_listed(spacing_of(affine))}, so nobody knows its spacing; convert it again")
    if len(forms) == 2 and _axes(forms["sform"]) != _axes(forms["qform"]):
        said = f"sform says {_axes(forms['sform'])}, qform {_axes(forms['qform'])}"
        raise Unusable(f"{path}: {said}, so nobody knows which way it lies; convert it again")
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM:
        raise Unusable(f"{path}: xyzt_units {int(header['xyzt_units'])} names no unit of length; convert it again")
    notes = (f"lengths in {_UNITS[unit]} (xyzt_units) brought to mm",) if unit in _UNITS else ()
    affine = np.asarray(next(iter(forms.values())), np.float64)
    return np.diag([_MM[unit]] * 3 + [1.0]) @ affine, notes


def _axes(affine: NDArray[np.float64]) -> str:
    from nibabel import orientations

    find: Any = orientations.aff2axcodes
    return "".join(code or "?" for code in find(affine))


def _listed(sides: NDArray[np.float64]) -> str:
    return " x ".join(f"{side:g}" for side in sides)


@contextmanager
def _unpacked(raw: io.BufferedReader) -> Iterator[Any]:
    """The file, or what it holds where it is gzipped."""
    gzipped = raw.peek(2)[:2] == b"\x1f\x8b"
    if not gzipped:
        yield raw
        return
    with gzip.GzipFile(fileobj=raw) as file:
        yield file


@contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """What nibabel logs about a damaged header is in our own sentence."""
    logger = logging.getLogger("nibabel.global")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
