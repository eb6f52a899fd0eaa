"""A mask as a DICOM segmentation object, by highdicom, so that the hospital's archive shows it over the series. Called by `results`.

The object refers to the slices that were read, takes patient and study from them, and says which model made it. It stays in the hospital.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.budget import foreign
from fedhelp_core.data.grid import Volume, spacing_of
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.deployment.contract import Contract

_TYPES = {"lung": ("39607008", "Lung"), "brain": ("12738006", "Brain")}
"""Foreground of our tasks -> SNOMED CT's code and words; another one is called tissue, with its own name as the label."""
_TISSUE = ("85756007", "Body tissue")
_ANATOMY = ("123037004", "Anatomical structure")
_SEGMENTATION_SERIES = 9000  # far from the numbers that scanners give


def write_segmentation(path: Path, volume: Volume, mask_XYZ: NDArray[np.bool_], contract: Contract, sha256: str) -> None:
    """Write `mask_XYZ`, on the voxels of the DICOM series that `volume` was read from. The same again gives the same identifiers.

    Args:
        path: The file.
        volume: The series; its `slices` say which files and frames.
        mask_XYZ: The foreground.
        contract: Of the model.
        sha256: Of the image, for the identifiers.

    Raises:
        Unusable: the series lacks what such an object must say of it, or nothing is marked.
    """
    with foreign(lambda why: Unusable(f"no DICOM segmentation object can be made of it ({why}); its mask is there as NIfTI"), Unusable):
        _write(path, volume, mask_XYZ, contract, sha256)


def _write(path: Path, volume: Volume, mask_XYZ: NDArray[np.bool_], contract: Contract, sha256: str) -> None:
    import pydicom
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from highdicom.sr.coding import CodedConcept
    from pydicom.uid import generate_uid

    slices = volume.slices
    files = list(dict.fromkeys(file for file, _ in slices))
    documents = [_described(pydicom.dcmread(file, stop_before_pixels=True), volume) for file in files]
    order = sorted(range(len(slices)), key=lambda z: (files.index(slices[z][0]), slices[z][1]))
    planes_ZYX = np.ascontiguousarray(mask_XYZ.transpose(2, 1, 0)[order]).astype(np.uint8)
    foreground = contract.task.classes[1]
    identity = [contract.weights_sha256, sha256]
    code = _TYPES.get(foreground, _TISSUE)
    segment = SegmentDescription(
        segment_number=1, segment_label=foreground[:64], segmented_property_category=CodedConcept(_ANATOMY[0], "SCT", _ANATOMY[1]),
        segmented_property_type=CodedConcept(code[0], "SCT", code[1]), algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=contract.name[:64], version=contract.version[:64], family=CodedConcept("123109", "DCM", "Artificial Intelligence")))
    made = Segmentation(
        source_images=documents, pixel_array=planes_ZYX, segmentation_type=SegmentationTypeValues.BINARY, segment_descriptions=[segment],
        series_instance_uid=generate_uid(entropy_srcs=[*identity, "series"]), series_number=_SEGMENTATION_SERIES,
        sop_instance_uid=generate_uid(entropy_srcs=[*identity, "object"]), instance_number=1, manufacturer="FedHelp",
        manufacturer_model_name=str(contract.network)[:64], software_versions=contract.version[:64],
        device_serial_number=contract.weights_sha256[:16], series_description=f"{foreground} by {contract.name}"[:64], omit_empty_frames=True)
    made.save_as(path)


def _described(document: Any, volume: Volume) -> Any:
    """With the elements that the standard lets be empty, which research exports leave out, and the distance of slices where no thickness is told."""
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
                    "ReferringPhysicianName"):
        if keyword not in document:
            setattr(document, keyword, "")
    groups = [*document.get("SharedFunctionalGroupsSequence", ()), *document.get("PerFrameFunctionalGroupsSequence", ())]
    for place in [measures for group in groups for measures in group.get("PixelMeasuresSequence", ())] or [document]:
        if not place.get("SliceThickness"):
            place.SliceThickness = f"{spacing_of(volume.affine)[2]:.6g}"
    return document
