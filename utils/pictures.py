"""Pictures from outside: files, uploads and arrays become tensors, or one clear sentence."""

import io
import os
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils import files
from utils.paths import PHOTOS

MAX_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
# Others are refused: some of PIL's readers start a program to draw what they are given.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")


class PictureError(ValueError):
    """A picture that cannot be used; the message names it, the cause and the remedy."""


def read(source, name: str = "", most: int = 0) -> Tensor:
    """Any picture → (3, H, W) float in [0, 1], on white where it is transparent.

    source: a path, the bytes of a file, a PIL picture or a uint8 array (H, W, 3); most: the
    longest side, if larger ones shall be scaled down to it. The first frame of an animation is
    used; EXIF rotation is applied. Raises PictureError.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            shape = f"{source.dtype} array of shape {source.shape}"
            raise PictureError(f"A picture array is uint8 (H, W, 3); this is a {shape}.")
        return to_tensor(Image.fromarray(source), most)
    name = short(name)
    if isinstance(source, str | os.PathLike):
        name = name or short(os.path.basename(os.fspath(source))) or "The path"
        try:
            source = files.read(source, MAX_BYTES)
        except files.Unreadable as reason:
            raise PictureError(f"{name} {reason}; choose another file.") from None
    name = name or "The picture"
    if not isinstance(source, Image.Image | bytes | bytearray | memoryview):
        kind = type(source).__name__
        raise PictureError(f"{name} is a {kind}; give a path, bytes, a PIL picture or an array.")
    if not isinstance(source, Image.Image):
        if not len(source):
            raise PictureError(f"{name} is empty (0 bytes); choose another file.")
        if len(source) > MAX_BYTES:
            raise PictureError(f"{name} is larger than 50 MB; make it smaller.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a size that PIL warns about is refused below
            picture = source
            if not isinstance(source, Image.Image):
                picture = Image.open(io.BytesIO(source), formats=FORMATS)
            width, height = picture.size
            size = f"{width}×{height} pixels"
            if not width * height:
                raise PictureError(f"{name} has {size}; choose another picture.")
            if width * height > MAX_PIXELS:
                raise PictureError(f"{name} has {size}, too many to open; scale it down first.")
            if most and picture is not source:
                picture.draft(None, (most, most))  # a JPEG need not be unpacked whole
            picture.load()
            return to_tensor(picture, most, name)
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(f"{name} has too many pixels to open; scale it down first.") from None
    except UnidentifiedImageError:
        raise PictureError(
            f"{name} is not a picture that can be read; use PNG, JPEG, WebP or GIF."
        ) from None
    except Exception:  # decoders raise many kinds of error on broken files
        raise PictureError(f"{name} is damaged or cut short; save it again.") from None


def short(name: str) -> str:
    """A file's name on one line, with its end, cut in the middle when it is long."""
    name = "".join(letter if letter.isprintable() else "�" for letter in name)
    return name if len(name) <= 60 else f"{name[:40]}…{name[-15:]}"


def to_tensor(picture: Image.Image, most: int = 0, name: str = "The picture") -> Tensor:
    """A PIL picture in any mode → (3, H, W) float in [0, 1], on white; most: see `read`."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        values = np.asarray(picture, dtype=np.float32)
        if not np.isfinite(values).all():
            raise PictureError(f"{name} holds what is no number; save it again.")
        picture = to_grey(values, picture.mode == "F")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        picture = page
    picture = picture.convert("RGB")
    if most:
        picture.thumbnail((most, most))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(255)


def to_grey(values: np.ndarray, fractions: bool) -> Image.Image:
    """Values (H, W) from 0 to white; white is the least usual one that none exceeds."""
    largest = values.max(initial=0)
    usual = [1] * fractions + [255, 65535]
    white = next((value for value in usual if largest <= value), largest)
    return Image.fromarray((values / white * 255).clip(0, 255).astype(np.uint8))


def to_pil(picture: Tensor) -> Image.Image:
    """(3, H, W) float in [0, 1], or uint8 → PIL. Raises PictureError."""
    shape = tuple(getattr(picture, "shape", ()))
    if not isinstance(picture, Tensor) or len(shape) != 3 or shape[0] != 3 or 0 in shape:
        seen = shape or f"a {type(picture).__name__}"
        raise PictureError(f"A picture is a tensor (3, H, W); this is {seen}: give one like that.")
    if not picture.isfinite().all():
        raise PictureError("The picture holds what is no number; check what made it.")
    if picture.dtype != torch.uint8:
        picture = picture.detach().clamp(0, 1).mul_(255).round_().to(torch.uint8)
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())


def photo(name: str) -> Tensor:
    """One of the course's public-domain photographs, e.g. `photo("coffee")`, (3, H, W)."""
    known = sorted(path.stem for path in PHOTOS.glob("*.webp"))
    if name not in known:
        raise ValueError(f"There is no photo {name!r:.60}; choose one of {', '.join(known)}.")
    return read(PHOTOS / f"{name}.webp")
