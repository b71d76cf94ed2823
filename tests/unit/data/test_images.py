from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deploykit.data import images
from deploykit.data.images import decode
from deploykit.errors import BadInputError, ResourceError

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


@pytest.mark.parametrize(
    ("form", "modes"),
    [("PNG", "1 L LA P RGB RGBA"), ("TIFF", "1 L LA P RGB RGBA CMYK"), ("GIF", "1 L P"), ("BMP", "1 L P RGB")],
)
def test_every_mode_of_a_format_becomes_rgb(tmp_path: Path, form: str, modes: str) -> None:
    for mode in modes.split():
        image = Image.fromarray(PIXELS).convert(mode)
        found = decode(write(tmp_path, encoded(image, form)))
        assert np.array_equal(found, np.asarray(image.convert("RGB"))), mode


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


def tiff(width: int, samples: bytes, *, bits: int, photometric: int) -> bytes:
    """Return a one-line TIFF of grey, as scanners and microscopes write it."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(samples)}
    padded = samples + bytes(len(samples) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(padded)) + padded + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_grey_that_begins_with_white_is_turned(tmp_path: Path) -> None:
    deep = np.asarray([0, 1000, 40000, 65535], np.uint16)
    for photometric, expected in ((0, 255 - (deep >> 8)), (1, deep >> 8)):
        data = tiff(4, deep.astype("<u2").tobytes(), bits=16, photometric=photometric)
        assert np.array_equal(decode(write(tmp_path, data, "a.tif"))[0, :, 1], expected)
    plain = bytes([0, 100, 255, 7])
    found = decode(write(tmp_path, tiff(4, plain, bits=8, photometric=0), "a.tif"))
    assert found[0, :, 0].tolist() == [255, 155, 0, 248]


def test_twelve_bits_are_not_shown_sixteen_times_too_dark(tmp_path: Path) -> None:
    values = [0, 0x7F0, 0xFFF, 0x123]
    packed = bytes.fromhex("".join(f"{value:03x}" for value in values))
    found = decode(write(tmp_path, tiff(4, packed, bits=12, photometric=1), "a.tif"))
    assert found[0, :, 0].tolist() == [value >> 4 for value in values]


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


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = PIXELS.repeat(16, axis=0).repeat(16, axis=1)
    lossless: dict[str, dict[str, object]] = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
    }
    options = lossless.get(form, {})
    found = decode(write(tmp_path, encoded(Image.fromarray(blocks), form, exif=exif, **options))).astype(int)
    assert found.shape == UPRIGHT[orientation](blocks).shape
    assert np.abs(found - UPRIGHT[orientation](blocks)).max() <= (8 if form == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["I;16", "L", "LA", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_in_every_mode(tmp_path: Path, orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    image = Image.fromarray(deep if mode == "I;16" else PIXELS)
    expected = np.repeat((deep >> 8)[..., None], 3, axis=2)
    if mode != "I;16":
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    for form in ("TIFF",) if mode == "CMYK" else ("PNG", "TIFF"):
        found = decode(write(tmp_path, encoded(image, form, exif=exif)))
        assert np.array_equal(found, UPRIGHT[orientation](expected)), form


@pytest.mark.parametrize(
    ("form", "options"),
    [("TIFF", {}), ("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("MPO", {"quality": 100})],
)
def test_the_first_frame_of_several_is_taken(tmp_path: Path, form: str, options: dict[str, object]) -> None:
    """MPO is what phones write as .jpg: a JPEG and further ones behind it."""
    blocks = (PIXELS // 128 * 255).repeat(16, axis=0).repeat(16, axis=1)
    frames = [Image.fromarray(blocks), Image.fromarray(255 - blocks)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    found = decode(write(tmp_path, data)).astype(int)
    if form == "MPO":
        assert np.abs(found - blocks).mean() < 20
    else:
        assert np.array_equal(found, blocks)


def test_a_transparent_gif_keeps_the_colours_beneath(tmp_path: Path) -> None:
    image = Image.fromarray(np.asarray([[0, 1], [2, 1]], np.uint8)).convert("P")
    image.putdata([0, 1, 2, 1])
    image.putpalette([255, 0, 0, 0, 128, 0, 0, 0, 64])
    found = decode(write(tmp_path, encoded(image, "GIF", transparency=1), "a.gif"))
    assert found.tolist() == [[[255, 0, 0], [0, 128, 0]], [[0, 0, 64], [0, 128, 0]]]


@pytest.mark.parametrize("form", ["EPS", "TGA", "PCX", "ICO", "JPEG2000", "PDF"])
def test_other_formats_are_refused_whatever_the_suffix(tmp_path: Path, form: str) -> None:
    """Pillow would hand an EPS to Ghostscript: files of unknown origin are not run through programs."""
    path = write(tmp_path, encoded(Image.fromarray(PIXELS), form), "a.jpg")
    with pytest.raises(BadInputError, match=r"a\.jpg is no image, or none of JPEG, PNG"):
        decode(path)


def test_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    assert np.array_equal(decode(write(tmp_path, encoded(Image.fromarray(PIXELS), "PNG"), "a.jpg")), PIXELS)


def test_what_may_not_be_read_is_named(bound: Path) -> None:
    path = write(bound, encoded(Image.fromarray(PIXELS), "PNG"))
    path.chmod(0)
    with pytest.raises(BadInputError, match=r"a\.png can't be decoded: Permission denied$"):
        decode(path)


@pytest.mark.parametrize("error", [struct.error("odd"), TypeError("odd"), KeyError("odd"), RuntimeError("odd")])
def test_whatever_a_damaged_file_leads_pillow_to_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Fuzzing EXIF and TIFF tags met the first two, too seldom to be met in a test."""

    def fail(_image: Image.Image) -> Image.Image:
        raise error

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    with pytest.raises(BadInputError, match=r"a\.png can't be decoded: .*odd"):
        decode(write(tmp_path, encoded(Image.fromarray(PIXELS), "PNG")))


def test_no_memory_is_not_the_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_image: Image.Image) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    with pytest.raises(ResourceError, match=r"a\.png: not enough memory"):
        decode(write(tmp_path, encoded(Image.fromarray(PIXELS), "PNG")))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=re.escape(f"{tmp_path / 'gone.png'} is missing")):
        decode(tmp_path / "gone.png")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, told in (
        ("pipe.png", "is no regular file"),
        (".", "is a folder"),
        ("loop.png", "Too many levels"),
        (f"{'n' * 300}.png", "name too long"),
    ):
        with pytest.raises(BadInputError, match=told):
            decode(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"P6 1", bytes(99)])
def test_what_is_no_image_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInputError, match=r"a\.png"):
        decode(write(tmp_path, data))


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=re.escape(str(tmp_path))):
        decode(tmp_path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_truncated_file_is_refused_and_never_half_grey(tmp_path: Path, form: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(BadInputError, match=r"a\.png"):
            decode(write(tmp_path, data[: int(len(data) * share)]))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
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
