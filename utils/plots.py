"""Pictures and curves in one look: the palette, grids, heatmaps, curves, bars.

`grid` shows its pictures. `heatmap`, `curve` and `bars` draw into the axes that `figure`
gives; `show` then shows the figure. What is shown has an alt text, which a test compares.
Importing this sets matplotlib's defaults.
"""

import io
import math
import textwrap

import matplotlib.pyplot as plt
import torch
from IPython.display import Image, display
from PIL import Image as PILImage
from torch import Tensor

from utils.pictures import to_pil

# by meaning, the same in every lesson
COLOURS = {
    "image": "#2f6fde",
    "text": "#e8710a",
    "shared": "#8e44ad",
    "code": "#1e9e5a",
    "noise": "#8a8f98",
    "wrong": "#c8322b",
}
CMAP = "PuOr"

plt.rcParams.update(
    {
        "figure.dpi": 100,
        "savefig.dpi": 100,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "figure.constrained_layout.use": True,
    }
)


def figure(columns: int = 1, rows: int = 1, width: float = 8.0, height: float = 3.2):
    """A figure and its axes (an array when there are several), at the course's size."""
    return plt.subplots(rows, columns, figsize=(width, height))


def png(fig) -> bytes:
    """A figure as the bytes of a PNG; it is closed then."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    plt.close(fig)
    return buffer.getvalue()


def show(fig, alt: str) -> None:
    """Show a matplotlib figure once, as a PNG with an alt text."""
    content, metadata = Image(png(fig), format="png", alt=alt)._repr_mimebundle_()
    display(content | {"text/plain": f"[{alt}]"}, raw=True, metadata=metadata)


def grid(
    pictures: Tensor, captions=None, *, alt: str, columns: int = 8, size: int = 88, title: str = ""
) -> None:
    """Pictures (N, 3, H, W) side by side, large enough to see, captions under them."""
    n = len(pictures)
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    wrapped = [textwrap.wrap(str(c), max(8, size // 7), max_lines=3) for c in captions or []]
    gap = 8
    text = 13 * max(map(len, wrapped), default=0) + (4 if wrapped else 0)
    top = 24 if title else 0
    width, height = columns * (size + gap) + gap, rows * (size + gap + text) + gap + top
    page = PILImage.new("RGB", (width, height), "white")
    for i in range(n):
        x, y = _corner(i, columns, size + gap, size + gap + text, gap, top)
        resample = PILImage.LANCZOS if pictures.shape[-1] > size else PILImage.BICUBIC
        page.paste(to_pil(pictures[i]).resize((size, size), resample), (x, y))
    # matplotlib draws the captions, because its font knows accents and symbols
    fig = plt.figure(figsize=(width / 100, height / 100), layout="none")
    fig.figimage(page, origin="upper")
    for i, lines in enumerate(wrapped):
        x, y = _corner(i, columns, size + gap, size + gap + text, gap, top)
        place = ((x + size / 2) / width, 1 - (y + size + 3) / height)
        fig.text(*place, "\n".join(lines), ha="center", va="top", fontsize=7.5)
    if title:
        fig.text(gap / width, 1 - 4 / height, title, va="top", fontsize=10)
    show(fig, alt)


def picture_rows(named: dict[str, Tensor], *, alt: str, size: int = 72) -> None:
    """Rows of pictures, (N, 3, H, W) each, one above the other, each under its name.

    size: how high they are shown. They are stored as a JPEG: as PNGs, many drawn pictures
    would fill a notebook.
    """
    from matplotlib import get_data_path
    from PIL import ImageDraw, ImageFont

    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 12)
    gap, line = 8, 18
    wide = {name: size * p.shape[3] // p.shape[2] for name, p in named.items()}
    most = max(len(p) * (wide[name] + gap) for name, p in named.items())
    page = PILImage.new("RGB", (most + gap, len(named) * (size + line + gap)), "white")
    pen = ImageDraw.Draw(page)
    for i, (name, pictures) in enumerate(named.items()):
        y = i * (size + line + gap) + line
        pen.text((gap, y - line + 1), name, "black", font)
        for j, picture in enumerate(pictures):
            x = gap + j * (wide[name] + gap)
            page.paste(to_pil(picture).resize((wide[name], size), PILImage.BICUBIC), (x, y))
            # white on white would have no edge
            pen.rectangle((x - 1, y - 1, x + wide[name], y + size), outline="#d0d4da")
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=80, optimize=True)
    image = Image(buffer.getvalue(), format="jpeg", alt=alt)
    content, metadata = image._repr_mimebundle_()
    display(content | {"text/plain": f"[{alt}]"}, raw=True, metadata=metadata)


def _corner(i, columns, step_x, step_y, gap, top):
    return gap + (i % columns) * step_x, top + gap + (i // columns) * step_y


def heatmap(matrix: Tensor, ax, title="", rows=None, columns=None, limit=None, numbers=""):
    """A matrix on `ax`: purple is high, orange is low, white is zero.

    numbers: how to write each value into its cell, e.g. "{:.2f}".
    """
    values = matrix.detach().float().cpu()
    limit = limit or values.abs().max().item() or 1.0
    ax.imshow(values, cmap=CMAP, vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_title(title)
    ax.spines[:].set_visible(False)
    ax.set_xticks(range(len(columns or [])), columns or [], rotation=45, ha="right")
    ax.set_yticks(range(len(rows or [])), rows or [])
    if numbers:
        for i in range(values.shape[0]):
            for j in range(values.shape[1]):
                colour = "white" if abs(values[i, j]) > 0.7 * limit else "black"
                ax.text(j, i, numbers.format(values[i, j]), ha="center", va="center", color=colour)


def curve(ax, values, label: str = "", colour: str = "shared", smooth: int = 1) -> None:
    """A line of values against steps; `smooth` averages that many neighbours."""
    y = torch.as_tensor(values, dtype=torch.float32)
    if smooth > 1 and len(y) >= smooth:
        y = y.unfold(0, smooth, 1).mean(1)
    x = range(smooth - 1, smooth - 1 + len(y)) if smooth > 1 else range(len(y))
    ax.plot(x, y, color=COLOURS.get(colour, colour), label=label or None, linewidth=1.6)


def bars(ax, lengths: dict, colour: str = "shared", title="", label: str = "") -> None:
    """Horizontal bars {name: length}, the first on top; `label` says what a length is."""
    y = range(len(lengths))
    ax.barh(y, list(lengths.values()), color=COLOURS.get(colour, colour))
    ax.set_yticks(y, lengths)
    ax.invert_yaxis()
    ax.set_title(title)
    ax.set_xlabel(label)
