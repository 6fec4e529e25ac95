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
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image as PILImage
from PIL import ImageDraw
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
# the shared space's purple above zero, the grey of noise below it
CMAP = LinearSegmentedColormap.from_list("grey to purple", [COLOURS["noise"], "white", "#5b2a70"])
FRAME = "#d0d4da"  # a hairline: white on white would have no edge

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
    pen = ImageDraw.Draw(page)
    for i in range(n):
        x, y = _corner(i, columns, size + gap, size + gap + text, gap, top)
        resample = PILImage.LANCZOS if pictures.shape[-1] > size else PILImage.BICUBIC
        page.paste(to_pil(pictures[i]).resize((size, size), resample), (x, y))
        pen.rectangle((x - 1, y - 1, x + size, y + size), outline=FRAME)
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
    from PIL import ImageFont

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
            pen.rectangle((x - 1, y - 1, x + wide[name], y + size), outline=FRAME)
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=80, optimize=True)
    image = Image(buffer.getvalue(), format="jpeg", alt=alt)
    content, metadata = image._repr_mimebundle_()
    display(content | {"text/plain": f"[{alt}]"}, raw=True, metadata=metadata)


def _corner(i, columns, step_x, step_y, gap, top):
    return gap + (i % columns) * step_x, top + gap + (i // columns) * step_y


def heatmap(
    matrix: Tensor,
    ax,
    title: str = "",
    rows=None,
    columns=None,
    limit: float | None = None,
    numbers: str = "",
    pictures: Tensor | None = None,
    scale: str = "",
) -> None:
    """A matrix on `ax`: purple is above zero, grey below it, white is zero.

    numbers: how to write each value into its cell, e.g. "{:.2f}"; pictures: one for each row,
    shown at its left; scale: what the values are, written at a colour bar. A small matrix gets
    lines between its cells.
    """
    values = matrix.detach().float().cpu()
    limit = limit or values.abs().max().item() or 1.0
    drawn = ax.imshow(values, cmap=CMAP, vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_title(title)
    ax.spines[:].set_visible(False)
    ax.set_xticks(range(len(columns or [])), columns or [], rotation=45, ha="right")
    ax.set_yticks(range(len(rows or [])), rows or [])
    height, width = values.shape
    if max(height, width) <= 24:
        # three sides of each cell would be drawn twice: lines across the whole matrix
        ax.hlines([y - 0.5 for y in range(height + 1)], -0.5, width - 0.5, FRAME, linewidth=0.6)
        ax.vlines([x - 0.5 for x in range(width + 1)], -0.5, height - 0.5, FRAME, linewidth=0.6)
    if pictures is not None:
        ax.tick_params("y", pad=24)
        for i, picture in enumerate(pictures):
            thumbnail = OffsetImage(to_pil(picture), zoom=22 / picture.shape[-1])
            frame = {"edgecolor": FRAME, "linewidth": 0.6}
            place = {"xybox": (-13, 0), "boxcoords": "offset points", "pad": 0}
            ax.add_artist(AnnotationBbox(thumbnail, (-0.5, i), bboxprops=frame, **place))
    if scale:
        bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.8, label=scale)
        bar.outline.set_visible(False)
        if (values >= 0).all():
            bar.ax.set_ylim(0)
    if numbers:
        for i in range(height):
            for j in range(width):
                colour = "white" if abs(values[i, j]) > 0.7 * limit else "black"
                ax.text(j, i, numbers.format(values[i, j]), ha="center", va="center", color=colour)


def curve(ax, values, label: str = "", colour: str = "shared", smooth: int = 1) -> None:
    """A line of values against steps; `smooth` averages that many neighbours."""
    y = torch.as_tensor(values, dtype=torch.float32)
    if smooth > 1 and len(y) >= smooth:
        y = y.unfold(0, smooth, 1).mean(1)
    x = range(smooth - 1, smooth - 1 + len(y)) if smooth > 1 else range(len(y))
    ax.plot(x, y, color=COLOURS.get(colour, colour), label=label or None, linewidth=1.6)


def line(ax, x, values, label: str = "", colour: str = "shared") -> None:
    """A line through a few measured points, each with a dot."""
    colour = COLOURS.get(colour, colour)
    ax.plot(x, values, "o-", color=colour, label=label or None, linewidth=1.6, markersize=3.5)


def bars(ax, lengths: dict, colour="shared", title="", label: str = "", numbers="") -> None:
    """Horizontal bars {name: length}, the first on top; `label` says what a length is.

    colour: one for all, or {name: colour}; numbers: how to write each length at the end of its
    bar, e.g. "{:.0%}".
    """
    y = range(len(lengths))
    each = [colour[name] if isinstance(colour, dict) else colour for name in lengths]
    drawn = ax.barh(y, list(lengths.values()), color=[COLOURS.get(c, c) for c in each])
    ax.set_yticks(y, lengths)
    ax.invert_yaxis()
    ax.set_title(title)
    ax.set_xlabel(label)
    if numbers:
        ax.bar_label(drawn, [numbers.format(x) for x in lengths.values()], padding=3)
