"""The page of a model's answers: each image with its mask or heat map over it, and what to make of the answer. Called by `results`.

It has no script and loads nothing. It shows patients' pictures and file names, so it stays in the hospital.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.data.inspection import tinted
from fedhelp_core.data.views import View, enlarged, volume_view
from fedhelp_core.deployment.images_in import PictureGrid, Prepared, stretched
from fedhelp_core.deployment.scorer import Answer, MaskAnswer, Scorer
from fedhelp_core.report import html

_HEAT = np.array((255, 70, 0), np.float32)  # what spoke most for the class
_LIKELIEST = 3  # classes whose probability is told


@dataclass(frozen=True)
class Shown:
    """One image on the page."""

    view: View
    captions: tuple[str, ...]
    format: str = "jpeg"
    """Of the view's files."""

    @classmethod
    def of(cls, prepared: Prepared, answer: Answer, row: Mapping[str, Any], *, heat: NDArray[np.float32] | None) -> Shown:
        """`row`: as it stands in the results; `heat`: of a class, (S, S)."""
        captions = (row["file"], row["decision"], *_numbers(answer, row))
        if not isinstance(answer, MaskAnswer):
            return cls(_class_view(prepared, heat), captions)
        if isinstance(prepared.grid, PictureGrid):
            return cls(_mask_view(prepared.grid.thumbnail, answer.probabilities_S), captions)
        assert prepared.image_CS is not None
        return cls(volume_view(prepared.image_CS[0], (answer.probabilities_S > 0.5).astype(np.uint8)), captions, "png")


def render(
    scorer: Scorer, shown: tuple[Sequence[Shown], Sequence[Shown]], *, answered: int, undecided: int, problems: Sequence[str], notes: Sequence[str],
) -> str:
    """The page."""
    contract = scorer.contract
    return html.render(
        "predictions.html.j2", title=f"{contract.title}: {contract.task.name}", contract=contract, answered=answered, undecided=undecided,
        on_page=sum(map(len, shown)), problems=problems, notes=notes, classes=not contract.task.per_pixel,
        band=_band(scorer), rule=contract.operating_point.rule if contract.operating_point is not None else "",
        sections=[("Do not decide", shown[0]), ("Answers", shown[1])])


def _band(scorer: Scorer) -> str:
    """What "do not decide" means here, in one sentence."""
    contract, band = scorer.contract, scorer.band
    if contract.task.per_pixel:
        return (f"A mask is not to be relied on where its expected Dice, by the model's own probabilities, is below {band.undecided_dice:g}"
                " (adoption.undecided_dice).")
    sure = contract.operating_point is not None and contract.operating_point.rule == "validation"
    said = "calibrated by temperature on this hospital's validation images" if sure else (
        "not calibrated, since there were too few validation images: models are then surer than they should be")
    near = "a finding's yes and no" if contract.task.form == "labels" else "the two likeliest classes"
    return (f"An image is not to be decided where {near} are nearer than {band.undecided_margin:g} in probability"
            f" (adoption.undecided_margin). Probabilities are {said}.")


def _numbers(answer: Answer, row: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(answer, MaskAnswer):
        likeliest = sorted(row["probabilities"].items(), key=lambda pair: -pair[1])[:_LIKELIEST]
        yield ", ".join(f"{name} {value:.2f}" for name, value in likeliest)
        yield f"margin {row['margin']:.2f}"
    else:
        yield f"{row['foreground']:.1%} marked, expected Dice {row['expected_dice']:.2f}"
        if "millilitres" in row:
            yield f"{row['millilitres']:,.1f} ml"


def _class_view(prepared: Prepared, heat_SS: NDArray[np.float32] | None) -> View:
    assert isinstance(prepared.grid, PictureGrid)
    plain = prepared.grid.thumbnail
    if heat_SS is None:
        return View(_jpeg(plain))
    share_HW1 = 0.6 * stretched(heat_SS, (plain.height, plain.width)).clip(0, 1)[..., None]
    pixels_HWC = np.asarray(plain).astype(np.float32) * (1 - share_HW1) + _HEAT * share_HW1
    return View(_jpeg(plain), _jpeg(Image.fromarray(pixels_HWC.astype(np.uint8))))


def _mask_view(plain: Image.Image, probabilities_SS: NDArray[np.float32]) -> View:
    return View(_jpeg(plain), _jpeg(tinted(plain, stretched(probabilities_SS, (plain.height, plain.width)) > 0.5)))


def _jpeg(image: Image.Image) -> bytes:
    """A tenth of a PNG: the page is for people, masks and numbers are in files of their own."""
    buffer = io.BytesIO()
    enlarged(image).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
