"""Public images are read from every layout, and each is known by its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedhelp_core.errors import DataError
from fedhelp_core.softlabels.public_images import in_shard, read_public_images, shard_of
from tests.core.softlabels.helpers import PICTURES, SIDE, draw, pictures, shades_of


class TestPublicImages:
    def test_an_empty_folder_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / ".hidden.png").write_bytes(b"left out")
        with pytest.raises(DataError, match=r"at least one public image \(.jpeg, .jpg, .png\) expected, found none; correct public_set.images"):
            read_public_images(tmp_path, PICTURES)

    def test_a_missing_folder_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere does not exist; give the public images"):
            read_public_images(tmp_path / "nowhere", PICTURES)

    def test_every_image_that_cannot_be_read_is_listed(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        for name in ("a.png", "b.jpg", "good.png"):
            Image.fromarray(noise).save(tmp_path / name)
        for name in ("a.png", "b.jpg"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
        (tmp_path / "c.png").write_bytes(b"")
        (tmp_path / "d.jpeg").write_text("<html>moved</html>")
        Image.fromarray(noise).save(tmp_path / "e.gif")
        (tmp_path / "e.gif").rename(tmp_path / "e.png")
        with pytest.raises(DataError) as caught:
            read_public_images(tmp_path, PICTURES)
        assert [Path(problem.partition(":")[0]).name for problem in caught.value.problems] == ["a.png", "b.jpg", "c.png", "d.jpeg", "e.png"]
        assert all("cannot be read as an image" in problem and "replace or remove it" in problem for problem in caught.value.problems)

    def test_a_tag_of_another_type_than_its_name_promises_is_no_crash(self, tmp_path: Path) -> None:
        exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + b"".join([
            b"\x00\x02",  # two tags: ImageLength as text, and an orientation that makes Pillow write the tags anew
            b"\x01\x01\x00\x02\x00\x00\x00\x05\x00\x00\x00\x26", b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00", b"\x00" * 4, b"tall\x00"])
        half = np.zeros((64, 64, 3), np.uint8)
        half[:32] = 200  # at the right, once it is upright
        Image.fromarray(half).save(tmp_path / "a.jpg", exif=exif)
        pixels = read_public_images(tmp_path, PICTURES).pixels([0])[0]
        assert pixels[:, : SIDE // 2 - 2].max() < 40 and pixels[:, SIDE // 2 + 2 :].min() > 160

    def test_16_bit_grey_keeps_its_upper_8_bits(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((SIDE, SIDE), 0x80FF, np.uint16)).save(tmp_path / "grey.png")
        assert read_public_images(tmp_path, PICTURES).pixels([0]).tolist() == [[[[0x80] * 3] * SIDE] * SIDE]

    def test_colours_for_print_are_refused(self, tmp_path: Path) -> None:
        Image.new("CMYK", (SIDE, SIDE)).save(tmp_path / "a.jpg")
        with pytest.raises(DataError, match=r"a.jpg: has colours for print \(CMYK\)"):
            read_public_images(tmp_path, PICTURES)

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
    def test_every_colour_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        Image.new("RGB", (SIDE, SIDE), (255, 255, 255)).convert(mode).save(tmp_path / "a.png")
        pixels = read_public_images(tmp_path, PICTURES).pixels([0])
        assert pixels.shape == (1, SIDE, SIDE, 3)
        assert pixels.min() >= 254

    def test_the_centre_of_a_wide_image_is_kept(self, tmp_path: Path) -> None:
        wide = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
        wide[:, SIDE : 2 * SIDE] = 200
        Image.fromarray(wide).save(tmp_path / "wide.png")
        assert (read_public_images(tmp_path, PICTURES).pixels([0])[0, :, 2:-2] == 200).all()

    def test_a_photograph_held_upright_is_upright(self, tmp_path: Path) -> None:
        lying = np.zeros((16, 16), np.uint8)
        lying[:8] = 240  # bright above, as the sensor saw it; orientation 6 says: turn it clockwise
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(lying).save(tmp_path / "a.jpg", exif=exif, quality=100)
        pixels = read_public_images(tmp_path, pictures(16)).pixels([0])[0]
        assert pixels[:, 12:].min() > 200
        assert pixels[:, :4].max() < 50

    def test_pixels_are_those_of_the_chosen_images(self, tmp_path: Path) -> None:
        images = read_public_images(draw(tmp_path, 0, 50, 100), PICTURES)
        order = shades_of(images.pixels([0, 1, 2]))
        assert sorted(order) == [0, 50, 100]
        assert shades_of(images.pixels([2, 0])) == [order[2], order[0]]

    def test_an_image_that_changes_while_it_is_used_stays_what_it_was(self, tmp_path: Path) -> None:
        images = read_public_images(draw(tmp_path, 0), PICTURES)
        Image.new("RGB", (SIDE, SIDE), (9, 9, 9)).save(tmp_path / "000.png")
        assert shades_of(images.pixels([0])) == [0]

    def test_a_shard_decodes_its_own_images_alone(self, tmp_path: Path) -> None:
        draw(tmp_path, *range(0, 200, 10))
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no image")
        mine = shard_of(hashlib.sha256(b"no image").hexdigest(), 3)
        with pytest.raises(DataError, match=r"broken\.png: cannot be read as an image"):
            read_public_images(tmp_path, PICTURES, wanted=in_shard((mine, 3)))
        others = [read_public_images(tmp_path, PICTURES, wanted=in_shard((number, 3))) for number in range(1, 4) if number != mine]
        assert all(images.hashes and not images.duplicates for images in others)
        broken.unlink()
        whole = read_public_images(tmp_path, PICTURES)
        parts = [read_public_images(tmp_path, PICTURES, wanted=in_shard((number, 3))) for number in range(1, 4)]
        assert sorted(image for part in parts for image in part.hashes) == list(whole.hashes)
