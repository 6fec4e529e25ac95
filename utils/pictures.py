"""Pictures from outside: files, uploads and arrays become tensors, or one clear sentence."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils.paths import PHOTOS

MAX_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
# Others are refused: some of PIL's readers start a program to draw what they are given.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")


class PictureError(ValueError):
    """A picture that cannot be used; the message names it, the cause and the remedy."""


def read(source, name: str = "") -> Tensor:
    """Any picture → (3, H, W) float in [0, 1], on white where it is transparent.

    source: a path, the bytes of a file, a PIL picture or a uint8 array (H, W, 3). The first
    frame of an animation is used; EXIF rotation is applied. Raises PictureError.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            shape = f"{source.dtype} array of shape {source.shape}"
            raise PictureError(f"A picture array is uint8 (H, W, 3); this is a {shape}.")
        return to_tensor(Image.fromarray(source))
    name = short(name)
    if isinstance(source, str | Path):
        path = Path(source)
        name = name or short(path.name)
        try:
            with open(path, "rb") as file:
                source = file.read(MAX_BYTES + 1)  # no more, for some files have no end
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or "it cannot be read"
            raise PictureError(f"{name}: {cause}; check the path.") from None
    name = name or "The picture"
    if not isinstance(source, Image.Image):
        source = bytes(source)
        if not source:
            raise PictureError(f"{name} is empty (0 bytes); choose another file.")
        if len(source) > MAX_BYTES:
            raise PictureError(f"{name} has more than the 50 MB allowed; make it smaller.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a size that PIL warns about is refused below
            picture = source
            if isinstance(source, bytes):
                picture = Image.open(io.BytesIO(source), formats=FORMATS)
            width, height = picture.size
            if width * height > MAX_PIXELS:
                size = f"{width}×{height} pixels"
                raise PictureError(f"{name} has {size}, too many to open; scale it down first.")
            picture.load()
            return to_tensor(picture)
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


def to_tensor(picture: Image.Image) -> Tensor:
    """A PIL picture in any mode → (3, H, W) float in [0, 1], on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        values = np.asarray(picture, dtype=np.float32)
        top = 65535 if values.max(initial=0) > 255 else 255
        picture = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        picture = page
    array = np.array(picture.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).float().div_(255)


def to_pil(picture: Tensor) -> Image.Image:
    """(3, H, W) float in [0, 1], or uint8 → PIL."""
    if picture.dtype != torch.uint8:
        picture = picture.detach().clamp(0, 1).mul_(255).round_().to(torch.uint8)
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())


def photo(name: str) -> Tensor:
    """One of the course's public-domain photographs, e.g. `photo("coffee")`, (3, H, W)."""
    path = PHOTOS / f"{name}.webp"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in PHOTOS.glob("*.webp")))
        raise ValueError(f"There is no photo {name!r}; choose one of {known}.")
    return read(path)
