"""The page of pictures: first and strangest images as the network gets them, masks over them, letters on volumes, intensities side by side."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.inspection import Seen, look_at
from fedhelp_core.data.items import Item
from fedhelp_core.data.views import FIRST, first_and_strangest, view_of
from fedhelp_core.report.picture_page import Looked, render
from tests.core.data.writers import write_nifti

PNEUMONIA = TaskConfig(name="pneumonia", image_size=20)
LUNGS = TaskConfig(name="lung-segmentation", image_size=20)
BRAINS = TaskConfig.model_validate({
    "name": "brain-segmentation", "image_size": 24, "volume": {"spacing": 4.0, "patch_size": 16, "window_size": 16}})


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Item]:
    """Twelve alike, a black one, a white one, a flat one."""
    rng = np.random.default_rng(1)
    alike = [saved(tmp_path / f"{n}.png", rng.integers(90, 130, (20, 20), np.uint8)) for n in range(12)]
    odd = {"black.png": rng.integers(0, 9, (20, 20), np.uint8), "white.png": rng.integers(246, 255, (20, 20), np.uint8),
           "flat.png": np.full((20, 20), 110, np.uint8)}
    return [Item(path, n % 2) for n, path in enumerate([*alike, *(saved(tmp_path / name, pixels) for name, pixels in odd.items())])]


def looked(items: Sequence[Item], task: TaskConfig, silo: str = "mitte", **more: object) -> Looked:
    return Looked(silo, list(look_at(items, task)), len(items), **more)  # type: ignore[arg-type]


def images_of(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(found))) for found in re.findall(r"data:image/png;base64,([^\"]+)", page)]


def test_the_strangest_are_those_at_the_ends_of_simple_numbers(pictures: list[Item]) -> None:
    first, strangest = first_and_strangest(list(look_at(pictures, PNEUMONIA)))
    assert [picked.seen.item for picked in first] == pictures[:FIRST]
    why = {picked.seen.item.image.name: picked.why for picked in strangest}
    assert why["black.png"].startswith("lowest mean: 4") and "usual 1" in why["black.png"]
    assert why["white.png"].startswith("highest mean: 25")
    assert why["flat.png"].startswith("lowest entropy: 0, usual 5")
    assert len(strangest) == len({picked.seen.item for picked in strangest})


def test_what_is_shown_is_what_the_network_sees(tmp_path: Path) -> None:
    pixels = np.zeros((30, 50), np.uint8)
    pixels[:, 25:] = 200
    view = view_of(Item(saved(tmp_path / "a.png", pixels)), PNEUMONIA, None)
    shown = np.asarray(Image.open(io.BytesIO(view.plain)).resize((20, 20), Image.Resampling.NEAREST))
    assert shown.shape == (20, 20, 3)  # cut to a square
    assert shown[:, :8].max() < 20 and shown[:, 12:].min() > 180
    deep = view_of(Item(saved(tmp_path / "b.png", pixels.astype(np.uint16) * 16)), PNEUMONIA, 12)
    assert deep.plain == view.plain


def test_masks_are_laid_over_their_pictures(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:10, 5:10] = 255
    item = Item(saved(tmp_path / "a.png", np.full((20, 20), 100, np.uint8)), mask=saved(tmp_path / "m.png", mask))
    page = render(looked([item], LUNGS), [looked([item], LUNGS)], LUNGS)
    plain, overlaid = (np.asarray(image.resize((20, 20), Image.Resampling.NEAREST)).astype(int) for image in images_of(page)[:2])
    assert (plain == 100).all()
    red = overlaid[..., 0] > overlaid[..., 1]
    assert (red == (mask > 0)).all()
    assert "6.2% marked" in page


@pytest.mark.slow
def test_volumes_are_three_slices_with_letters(tmp_path: Path) -> None:
    voxels = np.zeros((24, 22, 20), np.int16)
    voxels[15:, 4:, 3:] = 500  # the right side is bright
    mask = np.zeros_like(voxels)
    mask[16:20, 8:12, 8:12] = 1
    affine = np.diag([-4.0, 4, 4, 1])  # stored from right to left
    flipped = Item(write_nifti(tmp_path / "a.nii", voxels[::-1], affine), mask=write_nifti(tmp_path / "m.nii", mask[::-1], affine))
    page = render(looked([flipped], BRAINS), [looked([flipped], BRAINS)], BRAINS)
    assert "LAS, 4 x 4 x 4 mm" in page
    plain = np.asarray(images_of(page)[0].convert("RGB")).astype(int)
    height = plain.shape[0]
    axial = plain[:, :height]
    assert plain.shape[1] == 3 * height
    middle = axial[height // 2 - 20 : height // 2 + 20]
    assert middle[:, : height // 3].mean() < 60 < 150 < middle[:, 2 * height // 3 : -16].mean()  # right of the picture is the patient's right
    yellow = (plain[..., 0] > 200) & (plain[..., 1] > 180) & (plain[..., 2] < 110)
    for plane in range(3):  # a letter at each of four sides
        part = yellow[:, plane * height : (plane + 1) * height]
        assert part[:, :20].any() and part[:, -20:].any() and part[:20].any() and part[-20:].any()


def test_intensities_of_all_hospitals_stand_beside_each_other_on_one_scale(tmp_path: Path) -> None:
    dark = looked([Item(saved(tmp_path / "a.png", np.full((20, 20), 3, np.uint8)))], PNEUMONIA, "nord", origin="Nord")
    ramp = looked([Item(saved(tmp_path / "b.png", np.repeat(np.arange(0, 240, 12, np.uint8), 20).reshape(20, 20)))], PNEUMONIA)
    page = render(ramp, [dark, ramp], PNEUMONIA)
    assert page.count("<svg") == 2 and page.count('class="bar-first"') == page.count('class="bar-second"') == 32
    heights = [[float(height) for height in re.findall(r'height="([\d.]+)"', part)] for part in page.split("<svg")[1:]]
    assert heights[0][0] == 20 and sum(heights[0]) == 20  # all of it is black
    assert max(heights[1]) < 3 and abs(sum(heights[1]) - 20) < 0.1
    assert "nord (Nord)" in page


def test_names_are_escaped_and_nothing_is_loaded_or_run(tmp_path: Path) -> None:
    item = Item(saved(tmp_path / "<b>\u202e0.png", np.full((20, 20), 9, np.uint8)))
    page = render(
        looked([item], PNEUMONIA, origin="<i>", remarks=["<script>"], problems=["<u>"]), [looked([item], PNEUMONIA)], PNEUMONIA)
    for bad in ("<b>", "<i>", "<script", "<u>", "\u202e", "http:", "https:"):
        assert bad not in page
    assert "&lt;b&gt;\ufffd0.png" in page
    assert "keep it in the hospital" in page


def test_a_hospital_whose_images_cannot_be_used_has_a_page_too(tmp_path: Path) -> None:
    broken = Looked("a", [Seen(item=Item(tmp_path / "a.png"), problem="a.png: no")], 1, problems=["a.png: no"])
    page = render(broken, [broken], PNEUMONIA)
    assert "Cannot be used (1)" in page and "The first" not in page
