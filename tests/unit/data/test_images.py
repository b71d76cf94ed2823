from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deploykit.data import images
from deploykit.data.images import decode
from deploykit.errors import BadInputError

HEIGHT, WIDTH = 6, 8
PIXELS: NDArray[np.uint8] = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def write(folder: Path, data: bytes, name: str = "a.png") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_colours_come_back_exactly(tmp_path: Path, form: str, options: dict[str, object]) -> None:
    found = decode(write(tmp_path, encoded(Image.fromarray(PIXELS), form, **options)))
    assert found.dtype == np.uint8
    assert np.array_equal(found, PIXELS)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_become_rgb(tmp_path: Path, mode: str) -> None:
    smooth = np.zeros((16, 16, 3), np.uint8) + np.asarray([200, 120, 40], np.uint8)
    data = encoded(Image.fromarray(smooth).convert(mode), "JPEG", quality=95)
    found = decode(write(tmp_path, data, "a.jpg"))
    expected = np.asarray(Image.fromarray(smooth).convert(mode).convert("RGB"), np.int64)
    assert found.dtype == np.uint8
    assert found.shape == (16, 16, 3)
    assert np.abs(found - expected).max() <= 4


def test_grey_is_repeated_in_every_channel(tmp_path: Path) -> None:
    found = decode(write(tmp_path, encoded(Image.fromarray(PIXELS[..., 0]), "PNG")))
    assert np.array_equal(found, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    found = decode(write(tmp_path, encoded(Image.fromarray(PIXELS[..., 0] > 99), "PNG")))
    assert np.array_equal(found[..., 1], np.where(PIXELS[..., 0] > 99, 255, 0))


def test_transparency_is_dropped_and_colours_stay(tmp_path: Path) -> None:
    alpha = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH, 1)
    found = decode(write(tmp_path, encoded(Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)), "PNG")))
    assert np.array_equal(found, PIXELS)
    grey = np.concatenate([PIXELS[..., :1], alpha], axis=2)
    found = decode(write(tmp_path, encoded(Image.fromarray(grey), "PNG")))
    assert np.array_equal(found[..., 2], PIXELS[..., 0])


@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0, 128])], ids=["none", "one colour", "per colour"])
def test_palettes_are_looked_up(tmp_path: Path, transparency: object) -> None:
    index = np.asarray([[0, 1], [2, 1]], np.uint8)
    colours = [255, 0, 0, 0, 128, 0, 0, 0, 64]
    image = Image.fromarray(index).convert("P")
    image.putdata(index.ravel().tolist())
    image.putpalette(colours)
    options = {} if transparency is None else {"transparency": transparency}
    found = decode(write(tmp_path, encoded(image, "PNG", **options)))
    assert np.array_equal(found, np.asarray(colours, np.uint8).reshape(3, 3)[index])


@pytest.mark.parametrize(("form", "name"), [("PNG", "a.png"), ("TIFF", "a.tif")])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path, form: str, name: str) -> None:
    deep = np.asarray([[0, 255, 256, 1000], [32768, 40000, 65279, 65535]], np.uint16)
    found = decode(write(tmp_path, encoded(Image.fromarray(deep), form), name))
    assert found.shape == (2, 4, 3)
    for channel in range(3):
        assert np.abs(found[..., channel] - deep / 257.0).max() <= 1.0


@pytest.mark.parametrize("values", [np.float32, np.int32])
def test_samples_without_a_known_range_are_refused(tmp_path: Path, values: type) -> None:
    """A float or 32-bit image doesn't say what is white: guessing would give another picture."""
    path = write(tmp_path, encoded(Image.fromarray(np.full((2, 2), 1000, values)), "TIFF"), "a.tif")
    with pytest.raises(BadInputError, match=r"a\.tif"):
        decode(path)


#: EXIF orientation to what undoes it: how the stored pixels are turned for the viewer.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(write(tmp_path, encoded(Image.fromarray(PIXELS), "PNG", exif=exif)))
    assert np.array_equal(found, UPRIGHT[orientation](PIXELS))


def test_the_first_frame_of_several_is_taken(tmp_path: Path) -> None:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    path = write(tmp_path, encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "a.tif")
    assert np.array_equal(decode(path), PIXELS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=re.escape(f"{tmp_path / 'gone.png'} is missing")):
        decode(tmp_path / "gone.png")


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"P6 1", bytes(99)])
def test_what_is_no_image_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInputError, match=r"a\.png"):
        decode(write(tmp_path, data))


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=re.escape(str(tmp_path))):
        decode(tmp_path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_refused_and_never_half_grey(tmp_path: Path, form: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(BadInputError, match=r"a\.png"):
            decode(write(tmp_path, data[: int(len(data) * share)]))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_damaged_file_is_an_image_or_bad_input(tmp_path: Path, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if form in {"PNG", "JPEG", "WEBP"} else {}
    data, draw = encoded(Image.fromarray(PIXELS), form, **options), np.random.default_rng(9)
    refusals: list[bool] = []
    for at in draw.integers(0, len(data), 120):
        path = write(tmp_path, data[:at] + bytes([data[at] ^ int(draw.integers(1, 256))]) + data[at + 1 :])
        try:
            found = decode(path)
        except BadInputError as error:
            refusals.append(str(path) in error.message)
        else:
            assert found.dtype == np.uint8
            assert (found.ndim, found.shape[2]) == (3, 3)
    assert all(refusals)


def test_a_decompression_bomb_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    path = write(tmp_path, encoded(Image.fromarray(PIXELS), "PNG"))
    with pytest.raises(BadInputError, match=rf"{WIDTH}x{HEIGHT} pixels; at most {HEIGHT * WIDTH - 1} are decoded"):
        decode(path)
    monkeypatch.setattr(images, "MAX_PIXELS", HEIGHT * WIDTH)
    assert np.array_equal(decode(path), PIXELS)


@pytest.mark.parametrize(("width", "height"), [(12_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_header_that_claims_a_bomb_is_bad_input(tmp_path: Path, width: int, height: int) -> None:
    """The pixels are not there: nothing may be allocated for them, and no warning stand for an answer."""
    data = bytearray(encoded(Image.fromarray(PIXELS), "BMP"))
    data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    with pytest.raises(BadInputError, match=r"a\.png"):
        decode(write(tmp_path, bytes(data)))
