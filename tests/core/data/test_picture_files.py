"""Pictures and masks as cameras, detectors and drawing programs write them: the right pixels, or one sentence that names the file."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.config.silo import DatalistData, SiloConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.data.decode import decode_bytes
from fedhelp_core.data.items import Item
from fedhelp_core.data.picture_files import bits_of, deep_bits, picture_in
from fedhelp_core.data.pictures import checked_pair, read_picture
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.errors import DataError

SIDE = 24
GREY = np.tile(np.linspace(0, 255, SIDE).round().astype(np.uint8), (SIDE, 1))
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)
MARKED = np.zeros((SIDE, SIDE), np.uint8)
MARKED[4:15, 2:9] = 1  # no symmetry under any turn


def saved(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colours: int, rows: bytes, *more: bytes) -> bytes:
    """By hand: what Pillow cannot write."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def seen(raw: bytes) -> NDArray[np.uint8]:
    found = decode_bytes(raw, SIDE, "a")
    assert found.problem == ""
    assert found.pixels_SSC is not None
    return found.pixels_SSC


def with_orientation(pixels: NDArray[np.uint8], orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(pixels, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))


TURNED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # upright -> as a camera that was held so stores it
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", TURNED)
def test_cameras_that_were_turned_give_upright_pictures(orientation: int, kind: str) -> None:
    found = seen(with_orientation(np.ascontiguousarray(TURNED[orientation](COLOURS)), orientation, kind)).astype(int)
    assert np.abs(found - COLOURS).max() <= (0 if kind == "PNG" else 8)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_exif_does_not_know_is_none(orientation: int) -> None:
    assert (seen(with_orientation(COLOURS, orientation)) == COLOURS).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_8_bits_shows_its_pixels(mode: str) -> None:
    image = Image.fromarray(COLOURS if mode in ("P", "RGB", "RGBA") else GREY).convert(mode)
    assert (seen(saved(image)) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_fewer_bits_spans_black_to_white(depth: int) -> None:
    values = np.arange(8) % 2**depth
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    image = picture_in(png(8, 8, depth, 0, row * 8), "a").image
    assert (np.asarray(image.convert("L"))[0] == values * 255 // (2**depth - 1)).all()


@pytest.mark.parametrize("quality", [{"progressive": True}, {"optimize": True}, {"quality": 95, "subsampling": 0}, {"quality": 60}])
def test_jpegs_of_every_kind_have_pillows_pixels(quality: dict[str, Any]) -> None:
    for pixels in (COLOURS, GREY):
        raw = saved(np.kron(pixels, np.ones((3, 5, 1)[: pixels.ndim], np.uint8)), "JPEG", **quality)
        assert (np.asarray(picture_in(raw, "a").image) == np.asarray(Image.open(io.BytesIO(raw)))).all()


def interlaced(pixels: NDArray[np.uint8], rows_short: int = 0) -> bytes:
    """Adam7 by hand, perhaps without the last rows."""
    rows = []
    for left, top, right, down in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        rows += [b"\0" + row.tobytes() for row in pixels[top::down, left::right]]
    body = b"".join(rows[: len(rows) - rows_short])
    plain, passes = (chunk(b"IHDR", struct.pack(">IIBBBBB", *pixels.shape[::-1], 8, 0, 0, 0, interlace)) for interlace in (0, 1))
    return png(*pixels.shape[::-1], 8, 0, body).replace(plain, passes)


def test_interlaced_pngs_are_read_if_they_are_whole() -> None:
    assert (np.asarray(picture_in(interlaced(GREY), "a").image) == GREY).all()
    with pytest.raises(Unusable, match="its last rows are missing"):
        picture_in(interlaced(GREY, rows_short=1), "a")


# 16-bit files


@pytest.mark.parametrize(("bits", "largest"), [
    (8, 255), (10, 256), (10, 1023), (12, 1024), (12, 4095), (14, 4096), (14, 16383), (16, 16384), (16, 65535)])
def test_bits_in_use_are_the_fewest_that_detectors_have(bits: int, largest: int) -> None:
    assert bits_of(largest) == bits


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_hospitals_16_bit_pictures_are_scaled_alike_by_the_bits_in_use(bits: int, tmp_path: Path) -> None:
    full, dark = (GREY.astype(np.uint16) << (bits - 8)), (GREY.astype(np.uint16) << (bits - 8)) // 16
    rows = []
    for number, pixels in enumerate([full, dark, dark, GREY]):
        (tmp_path / f"{number}.png").write_bytes(saved(pixels))
        rows.append({"image": f"{number}.png", "label": number % 2})
    assert deep_bits(tmp_path / row["image"] for row in rows) == bits
    (tmp_path / "list.json").write_text(json.dumps({"training": rows[:3], "test": rows[3:]}))
    config = SiloConfig(name="a", data=DatalistData(layout="datalist", datalist=tmp_path / "list.json"), state=tmp_path / "state")
    found = load_silo_arrays(config, TaskConfig(name="pneumonia", image_size=SIDE))
    assert (found.training.images_NCHW[0, 0].numpy() == GREY).all()
    assert (found.training.images_NCHW[1, 0].numpy() == GREY // 16).all()
    assert (found.test.images_NCHW[0, 0].numpy() == GREY).all()


def test_a_datalist_says_the_bits_and_a_picture_of_more_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(saved(GREY.astype(np.uint16) * (5 if number else 16)))
    rows = [{"image": f"{number}.png", "label": number % 2} for number in range(3)]
    document = {"pixel_bits": 12, "training": rows[:2], "test": rows[2:]}
    config = SiloConfig(name="a", data=DatalistData(layout="datalist", datalist=tmp_path / "list.json"), state=tmp_path / "state")
    (tmp_path / "list.json").write_text(json.dumps(document))
    task = TaskConfig(name="pneumonia", image_size=SIDE)
    assert (load_silo_arrays(config, task).test.images_NCHW[0, 0].numpy() == GREY.astype(int) * 5 // 16).all()
    (tmp_path / "1.png").write_bytes(saved(GREY.astype(np.uint16) * 20))
    with pytest.raises(DataError, match=r"1\.png: has pixels up to 5100, more than the 12 bits of this hospital's other pictures"):
        load_silo_arrays(config, task)


# masks


def pair(folder: Path, mask: bytes, picture: bytes | None = None) -> Item:
    (folder / "picture.png").write_bytes(saved(GREY) if picture is None else picture)
    (folder / "mask.png").write_bytes(mask)
    return Item(folder / "picture.png", mask=folder / "mask.png")


def palette(indices: NDArray[np.uint8], *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def layers(*planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack(planes, axis=-1)


WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (200, 0, 0)
FULL = np.full_like(MARKED, 255)
MASKS: dict[str, bytes] = {
    "0 and 1": saved(MARKED),
    "0 and 255": saved(MARKED * 255),
    "one bit": saved(Image.fromarray(MARKED * 255).convert("1")),
    "16 bits": saved(MARKED.astype(np.uint16) * 40000),
    "equal channels": saved(layers(*[MARKED * 255] * 3)),
    "red on black": saved(layers(MARKED * 200, MARKED * 0, MARKED * 0)),
    "a palette": saved(palette(MARKED, BLACK, WHITE)),
    "a palette of colours": saved(palette(MARKED, BLACK, RED)),
    "a palette whose index 0 is the foreground": saved(palette(1 - MARKED, WHITE, BLACK)),
    "a palette whose index 0 is the red foreground": saved(palette(1 - MARKED, RED, BLACK)),
    "the alpha channel of white": saved(layers(FULL, MARKED * 255)),
    "the alpha channel of black": saved(layers(*[MARKED * 0] * 3, MARKED * 255)),
    "the alpha channel over what cannot be seen": saved(layers(GREY * (1 - MARKED) + MARKED * 90, MARKED * 255)),
    "colours and alpha that agree": saved(layers(*[MARKED * 255] * 3, MARKED * 255)),
    "an opaque alpha channel": saved(layers(*[MARKED * 255] * 3, FULL)),
    "a transparent colour": saved(Image.fromarray(MARKED * 255), transparency=0),
    "a transparent index of one colour": saved(palette(MARKED, WHITE, WHITE), transparency=0),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_kind_mark_the_same(name: str, tmp_path: Path) -> None:
    _, labels = checked_pair(pair(tmp_path, MASKS[name]))
    assert ((labels != 0) == (MARKED != 0)).all()
    target = read_picture(pair(tmp_path, MASKS[name]), SIDE).target
    assert (np.asarray(target)[0] == MARKED).all()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_and_its_mask_may_be_turned_alike_but_not_one_alone(orientation: int, tmp_path: Path) -> None:
    picture, mask = (with_orientation(np.ascontiguousarray(TURNED[orientation](pixels)), orientation) for pixels in (GREY, MARKED))
    found = read_picture(pair(tmp_path, mask, picture), SIDE)
    assert (np.asarray(found.target)[0] == MARKED).all()
    assert found.image_CHW is not None and (found.image_CHW[0] == GREY).all()
    for one, other, said in ((saved(MARKED), picture, f"is {orientation}, its mask's 1"), (mask, saved(GREY), f"is 1, its mask's {orientation}")):
        assert f"its EXIF orientation {said}, so nobody knows" in read_picture(pair(tmp_path, one, other), SIDE).problem


ANTIALIASED = (np.asarray(Image.fromarray(MARKED * 255).resize((12, 12), Image.Resampling.BICUBIC).resize((SIDE, SIDE))))
WRONG_MASKS: dict[str, tuple[bytes, str]] = {
    "everything marked": (saved(FULL), "the mask has no background, every value is 255"),
    "nothing marked": (saved(MARKED * 0), "the mask is empty, no foreground in it"),
    "two values, none 0": (saved(MARKED + 1), "the mask holds 2 labels (1, 2)"),
    "grey edges": (saved(ANTIALIASED), "labels (0, "),
    "a palette without black": (saved(palette(MARKED, WHITE, RED)), "the mask is a colour picture (P) of 2 colours"),
    "a palette of three": (saved(palette(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 3, BLACK, RED, (0, 9, 0))), "of 3 colours"),
    "a palette of one colour": (saved(palette(MARKED, BLACK, BLACK)), "the mask is empty"),
    "wholly transparent": (saved(layers(MARKED * 255, MARKED * 0)), "the mask is wholly transparent"),
    "colours and alpha that differ": (saved(layers(MARKED * 255, MARKED.T * 250 + 5 * MARKED)), "colours say another shape than its alpha channel"),
    "an alpha channel of many values": (saved(layers(FULL, ANTIALIASED)), "labels (0, "),
}


@pytest.mark.parametrize("name", WRONG_MASKS)
def test_a_mask_that_is_not_certain_is_refused(name: str, tmp_path: Path) -> None:
    mask, said = WRONG_MASKS[name]
    problem = read_picture(pair(tmp_path, mask), SIDE).problem
    assert said in problem
    assert problem.startswith(f"{tmp_path / 'mask.png'}: ")


# what is refused


def damaged(at: int) -> bytes:
    raw = bytearray(saved(COLOURS))
    raw[at] ^= 4
    return bytes(raw)


def animation() -> bytes:
    first = Image.fromarray(COLOURS)
    return saved(first, save_all=True, append_images=[Image.fromarray(COLOURS[::-1].copy())])


NOISE = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
JPEG = saved(NOISE, "JPEG")
WRONG: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no bytes in it"),
    "text": (b"hello", "neither JPEG nor PNG"),
    "a GIF": (saved(GREY, "GIF"), "is a GIF file"),
    "a TIFF": (saved(GREY, "TIFF"), "is a TIFF file"),
    "a TIFF of many pages": (saved(GREY, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)]), "is a TIFF file"),
    "a BMP": (saved(GREY, "BMP"), "is a BMP file"),
    "a WebP": (saved(COLOURS, "WEBP"), "is a WebP file"),
    "a JPEG 2000": (saved(GREY, "JPEG2000"), "is a JPEG 2000 file"),
    "a DICOM": (b"\0" * 128 + b"DICM" + b"\2\0", "is a DICOM file"),
    "a workbook": (b"PK\x03\x04" + b"\0" * 40, "is a zip file"),
    "colours for print": (saved(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"), "has colours for print (CMYK)"),
    "transparent pixels": (saved(layers(GREY, MARKED * 255)), "has transparent pixels"),
    "a transparent colour": (saved(Image.fromarray(GREY), transparency=int(GREY[0, 3])), "has transparent pixels"),
    "a transparent index": (saved(Image.fromarray(GREY).convert("P"), transparency=int(GREY[0, 3])), "has transparent pixels"),
    "a transparent value of 16 bits": (
        png(8, 8, 16, 0, (b"\0" + b"\0\7" * 8) * 8, chunk(b"tRNS", b"\0\7")), "has transparent pixels"),
    "16 bits a channel": (png(8, 8, 16, 2, (b"\0" + b"\x0f\xff" * 24) * 8), "16 bits a channel and several channels"),
    "16 bits grey with alpha": (png(8, 8, 16, 4, (b"\0" + b"\x0f\xff" * 16) * 8), "16 bits a channel and several channels"),
    "an animation": (animation(), "holds several pictures (an animation)"),
    "a PNG with a damaged head": (damaged(20), "chunk 8 bytes in is damaged or cut"),
    "a PNG with damaged pixels": (damaged(60), "chunk 33 bytes in is damaged or cut"),
    "a PNG that was cut": (saved(COLOURS)[:-20], "is damaged or cut"),
    "a PNG without its last chunk": (saved(COLOURS)[:-12], "is damaged or cut"),
    "a PNG of too little": (png(8, 8, 8, 0, (b"\0" + b"\1" * 8) * 5), "cannot be read as an image"),
    "a JPEG that was cut": (JPEG[: len(JPEG) // 2], "cannot be read as an image"),
    "a JPEG without its last bytes": (JPEG[:-40], "cannot be read as an image"),
    "a JPEG with zeros in it": (JPEG[:-900] + b"\0" * 500 + JPEG[-400:], "cannot be read as an image"),
    "a PNG of 179 megapixels": (png(13_400, 13_400, 1, 0, b""), "is larger than 178 megapixels, which is not read"),
    "a PNG of 4,000 megapixels": (png(63_246, 63_246, 1, 0, b""), "larger than 178 megapixels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_certain_is_refused_by_name(name: str) -> None:
    raw, said = WRONG[name]
    problem = decode_bytes(raw, SIDE, "folder/a.png").problem
    assert said in problem
    assert problem.startswith("folder/a.png: ")
    assert "\n" not in problem


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # the loader ignores it; pytest's own rule comes before that
def test_pictures_between_89_and_178_megapixels_are_read() -> None:
    width, height = 12_000, 8_000
    raw = png(width, height, 1, 0, (b"\0" + b"\xff" * (width // 8)) * height)
    assert picture_in(raw, "a").image.size == (width, height)


def test_a_gamma_that_screens_do_not_undo_is_told() -> None:
    raw = saved(GREY)
    with_gamma = raw[:33] + chunk(b"gAMA", struct.pack(">I", 100_000)) + raw[33:]
    assert picture_in(with_gamma, "a").notes == ("gamma 1 (gAMA) is not applied: pixels as stored",)
    assert picture_in(raw, "a").notes == ()


def test_every_refusal_is_the_loaders_own() -> None:
    with pytest.raises(Unusable):
        picture_in(b"", "a")
