"""Pictures from outside: every kind that is read, and one sentence for every one that is not."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests import helpers
from utils import pictures
from utils.pictures import PictureError, read, to_pil, to_tensor


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width × height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def spotted(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (8, 6), (255, 0, 0))
    picture.paste((0, 0, 255), (4, 0, 8, 6))
    return picture.convert(mode)


def refusal(source, name: str = "") -> str:
    return helpers.refusal(read, source, name, kind=PictureError)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
def test_usual_files_are_read(kind):
    picture = read(encoded(spotted(), kind))
    assert picture.shape == (3, 6, 8) and picture.dtype == torch.float32
    assert 0 <= picture.min() and picture.max() <= 1
    assert picture[0, 3, 0] > 0.9 and picture[2, 3, 7] > 0.9  # red stays left, blue right


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "RGBX", "P", "RGBa"])
def test_colour_modes_keep_their_colours(mode):
    source = spotted("RGBA").convert(mode) if mode == "RGBa" else spotted(mode)
    picture = to_tensor(source)
    wanted = to_tensor(spotted())
    assert (picture - wanted).abs().max() < 0.1


def test_a_cmyk_jpeg_is_read():
    picture = read(encoded(spotted("CMYK"), "JPEG", quality=95))
    assert picture.shape == (3, 6, 8)
    assert picture[0, 3, 0] > 0.8 and picture[2, 3, 0] < 0.3


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes_are_grey(mode):
    picture = read(encoded(Image.new("L", (4, 4), 255).convert(mode)))
    assert torch.equal(picture, torch.ones(3, 4, 4))


@pytest.mark.parametrize("value", [0, 32768, 65535])
def test_16_bits_keep_their_brightness(value):
    array = np.full((4, 5), value, dtype=np.uint16)
    array[0, 0] = 65535
    picture = read(encoded(Image.fromarray(array)))
    assert picture.shape == (3, 4, 5)
    assert picture[:, 1:].mean().item() == pytest.approx(value / 65535, abs=0.01)


def test_what_is_transparent_is_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert torch.equal(read(encoded(clear)), torch.ones(3, 4, 4))
    half = read(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))))
    assert half.mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_transparent_palette_colour_is_white():
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (0, 0, 2, 4))
    seen = read(encoded(picture, transparency=0))
    assert torch.equal(seen[:, 0, 3], torch.ones(3))
    assert seen[:, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_shows_its_first_frame(kind):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert read(data)[:, 2, 2].tolist() == [1, 0, 0]


def test_a_turned_photograph_is_turned_back():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    picture = read(encoded(spotted(), "JPEG", exif=exif, quality=95))
    assert picture.shape == (3, 8, 6)
    assert picture[0, 0, 3] > 0.9 and picture[2, 7, 3] > 0.9


def test_paths_bytes_arrays_and_pil_give_the_same(tmp_path):
    path = tmp_path / "spotted.png"
    spotted().save(path)
    wanted = to_tensor(spotted())
    sources = [path, str(path), path.read_bytes(), memoryview(path.read_bytes())]
    for source in [*sources, spotted(), np.array(spotted())]:
        assert torch.equal(read(source), wanted)


def test_there_and_back():
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(to_tensor(to_pil(picture)), picture / 255)
    assert torch.equal(to_tensor(to_pil(picture / 255)), picture / 255)
    outside = to_pil(torch.tensor([[[-1.0]], [[0.5]], [[9.0]]]))
    assert outside.getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(
    "data",
    [b"not a picture", b"%PDF-1.7", b"PK\x03\x04", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
     b"\x00" * 100, b"\x80\x04\x95\x00", b"GIF8"],
    ids=["text", "pdf", "zip", "svg", "zeros", "pickle", "gif"],
)  # fmt: skip
def test_what_is_no_picture_is_named(data):
    assert "holiday.png" in refusal(data, "holiday.png")


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    assert refusal(tmp_path / "empty.png") == (
        "empty.png is empty (0 bytes); choose another file."
    )
    assert "0 bytes" in refusal(b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_file_is_named(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert f"cut.{kind}" in refusal(data[: int(share * len(data))], f"cut.{kind}")


@pytest.mark.parametrize("position", [30, 50, 80])
def test_a_damaged_file_is_named(position):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    data = bytearray(encoded(Image.fromarray(noise)))
    data[position] ^= 0xFF
    assert "bad.png" in refusal(bytes(data), "bad.png")


@pytest.mark.parametrize("width, height", [(50_000, 50_000), (10_000, 10_000), (2**31 - 1, 1)])
def test_a_header_of_too_many_pixels_is_refused_at_once(width, height):
    began = time.monotonic()
    message = refusal(huge_png(width, height), "bomb.png")
    assert message.startswith("bomb.png has") and "too many" in message
    assert time.monotonic() - began < 1


def test_a_file_of_too_many_bytes_is_refused(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    assert "50 MB" in refusal(bytes(1001), "long.png")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert refusal(tmp_path / "none.png") == "none.png is missing; choose another file."
    assert refusal(str(tmp_path)) == f"{tmp_path.name} is no file; choose another file."
    refusal("a" * 5000)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)],
    ids=["float", "grey", "channels first"],
)
def test_other_arrays_are_described(array):
    message = refusal(array)
    assert str(array.dtype) in message and str(array.shape) in message


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 1e6])
def test_a_picture_of_floats_keeps_its_brightness(top):
    values = np.linspace(0, top, 20, dtype=np.float32).reshape(4, 5)
    picture = read(encoded(Image.fromarray(values), "TIFF"))
    wanted = torch.from_numpy(values / np.float32(top)).expand(3, 4, 5)
    assert (picture - wanted).abs().max() < 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_picture_of_floats_that_are_no_numbers_is_named(value):
    values = np.array([[0.5, value]], dtype=np.float32)
    message = refusal(encoded(Image.fromarray(values), "TIFF"), "x.tiff")
    assert message == "x.tiff holds what is no number; save it again."


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3)])
def test_pictures_without_pixels_are_refused(shape):
    assert str(shape) in refusal(np.zeros(shape, np.uint8))
    assert "0" in refusal(Image.new("RGB", shape[:2]))


def test_what_is_no_source_is_named():
    for source in (None, 5, 10**12, [1, 2], torch.rand(3, 4, 4), iter([1]), {"a": 1}):
        assert type(source).__name__ in refusal(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_picture_can_be_scaled_down(kind):
    picture = Image.new("RGB", (4000, 1000), "red")
    picture.paste("blue", (2000, 0, 4000, 1000))
    small = read(encoded(picture, kind), most=100)
    assert small.shape == (3, 25, 100)
    assert small[0, 12, 10] > 0.9 and small[2, 12, 90] > 0.9
    assert read(encoded(Image.new("RGB", (3000, 1)), kind), most=100).shape == (3, 1, 100)
    assert read(encoded(spotted(), kind), most=100).shape == (3, 6, 8)  # none is enlarged


@pytest.mark.parametrize(
    "picture", [None, 3, "cat.png", torch.rand(4, 4), torch.rand(1, 4, 4), torch.rand(3, 0, 4),
                torch.full((3, 2, 2), torch.nan), np.zeros((3, 4, 4))],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_picture_tensor_is_not_drawn(picture):
    helpers.refusal(to_pil, picture, kind=PictureError)


def test_the_shipped_photos_are_read():
    names = sorted(path.stem for path in pictures.PHOTOS.glob("*.webp"))
    for name in names:
        assert pictures.photo(name).shape[0] == 3
    for name in (None, 3, "\0", "x" * 5000, "../photos/coffee"):
        helpers.refusal(pictures.photo, name)
    with pytest.raises(ValueError, match="There is no photo 'nessie'") as error:
        pictures.photo("nessie")
    assert all(name in str(error.value) for name in names)
