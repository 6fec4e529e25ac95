"""Image–text pairs: loading, captions, augmentation and batches.

Not here: tokenizers (lesson 02) and everything that learns.
"""

import hashlib
import io
import json
import os
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from utils import device as devices
from utils import files, given
from utils.paths import EMOJI
from utils.pictures import PictureError, read, to_pil

SPLITS = ("train", "unseen")
STYLES = ("noto", "twemoji", "openmoji", "fluent")
LANGUAGES = ("en", "zh")
SIDE = 64  # of every picture, in pixels
TEXTS = ("concept", "label_en", "label_zh", "group", "subgroup", "style", "skin_tone")
MAX_PARQUET, MAX_METADATA = 100_000_000, 200_000_000  # bytes

STYLE_WORDS = {
    "noto": {"en": ["shaded", "noto"], "zh": ["渐变", "光影"]},
    "twemoji": {"en": ["flat", "plain"], "zh": ["扁平", "简洁"]},
    "openmoji": {"en": ["outlined", "line"], "zh": ["线条", "描边"]},
    "fluent": {"en": ["3D", "glossy"], "zh": ["立体", "三维"]},
}
TEMPLATES = {
    "en": [
        "{label}",
        "a picture of {label}",
        "a drawing of {label}",
        "an emoji of {label}",
        "a {style} drawing of {label}",
        "{label} in {style} style",
        "{label}, {keywords}",
        "a picture of {label}, {keywords}",
        "{keywords}, {label}",
        "{keywords}",
    ],
    "zh": [
        "{label}",
        "{label}的图片",
        "一幅{label}的画",
        "{label}的表情符号",
        "{style}风格的{label}",
        "{label}，{keywords}",
        "{label}的图片，{keywords}",
        "{keywords}，{label}",
        "{keywords}",
    ],
}
COMMA = {"en": ", ", "zh": "，"}
TONE_ZH = {
    "light": "浅肤色",
    "medium-light": "较浅肤色",
    "medium": "中等肤色",
    "medium-dark": "较深肤色",
    "dark": "深肤色",
}


@dataclass(frozen=True)
class Pairs:
    """Pictures with what is known about them.

    pictures: (N, 3, S, S) uint8; table: one list of length N per column. Emoji-4 has the
    columns of its card; pairs of your own have `text`.
    """

    pictures: Tensor
    table: dict[str, list]

    def __len__(self) -> int:
        return len(self.pictures)

    def row(self, i: int) -> dict:
        return {name: column[i] for name, column in self.table.items()}

    def where(self, **values) -> "Pairs":
        """The pairs whose columns have these values, e.g. `where(style="noto")`."""
        for name in values.keys() - self.table:
            raise ValueError(f"there is no column {name!r}; choose from {', '.join(self.table)}")
        keep = [
            i for i in range(len(self)) if all(self.table[k][i] == v for k, v in values.items())
        ]
        return self.take(keep)

    def take(self, indices) -> "Pairs":
        """The pairs of these row numbers, or where a mask of as many truth values is true."""
        indices = self.rows(indices)
        table = {name: [column[i] for i in indices] for name, column in self.table.items()}
        return Pairs(self.pictures[torch.as_tensor(indices, dtype=torch.long)], table)

    def rows(self, indices) -> list[int]:
        """Row numbers or a mask as a list of row numbers. Raises ValueError."""
        indices = given.several(indices) if not isinstance(indices, Tensor) else indices.tolist()
        n = len(self)
        if isinstance(indices, list) and indices and all(map(given.is_truth, indices)):
            if len(indices) != n:
                raise ValueError(f"the mask has {len(indices)} values; give one for each of {n}")
            return [i for i, chosen in enumerate(indices) if chosen]
        if not isinstance(indices, list):
            raise ValueError("rows are no list; give a list of whole numbers")
        found = [given.whole("a row", i) for i in indices]
        if found and not -n <= min(found) <= max(found) < n:
            raise ValueError(f"rows are {min(found)} to {max(found)}; choose from 0 to {n - 1}")
        return found

    @cached_property
    def concepts(self) -> list[list[int]]:
        """Row numbers grouped by concept; a pair without concepts is its own."""
        if "concept" not in self.table:
            return [[i] for i in range(len(self))]
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(self.table["concept"]):
            groups.setdefault(name, []).append(i)
        return list(groups.values())

    def caption(self, i: int, rng: random.Random, languages=LANGUAGES) -> str:
        """One caption of pair `i`, drawn from its label, keywords, style and templates."""
        if "text" in self.table:
            return self.table["text"][i]
        row = self.row(i)
        language = rng.choice(languages)
        label = row[f"label_{language}"]
        tone = row["skin_tone"]
        if tone != "none" and rng.random() < 0.7:
            label += f"，{TONE_ZH[tone]}" if language == "zh" else f" with {tone} skin tone"
        keywords = row[f"keywords_{language}"]
        template = rng.choice(TEMPLATES[language])
        if "{keywords}" in template and not keywords:
            template = "{label}"
        chosen = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
        return template.format(
            label=label,
            keywords=COMMA[language].join(chosen),
            style=rng.choice(STYLE_WORDS[row["style"]][language]),
        )


def _decode(data: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(data), formats=("PNG", "WEBP"))
    if picture.size != (SIDE, SIDE):  # before it is unpacked: a few bytes can promise gigabytes
        raise ValueError(f"a picture of {picture.size}")
    return np.asarray(picture.convert("RGB"))


def load_emoji(split: str = "train") -> Pairs:
    """Emoji-4, one split: `train`, or `unseen` (150 concepts that no model was trained on)."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    path = EMOJI / f"{split}.parquet"
    remedy = "restore assets/emoji from the repository"
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is missing; {remedy}")
    try:
        # read here, not by Arrow, so that a build sees which files a lesson opens
        content = files.read(path, MAX_PARQUET)
    except files.Unreadable as reason:
        raise ValueError(f"{path.name} {reason}; {remedy}.") from None
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(io.BytesIO(content)).to_pydict()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a size that is refused anyway
            # one after the other: on pictures this small, threads wait for each other
            decoded = [_decode(image["bytes"]) for image in table.pop("image")]
        pictures = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()
        whole = all(all(isinstance(text, str) for text in table[name]) for name in TEXTS)
    except Exception:  # Arrow and PIL raise many kinds of error on broken files
        whole = False
    if not whole:
        raise ValueError(f"{path.name} is damaged; {remedy}.")
    return Pairs(pictures, table)


def with_article(word: str) -> str:
    """“a flat”, “an outlined”: by the first letter, which is enough for the words of styles."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


@given.takes(count="from 0", seed="whole")
def set_aside(pairs: Pairs, count: int = 200, seed: int = 0) -> tuple[Pairs, Pairs]:
    """(what is kept, `count` pairs set aside): a concept in a style that is never shown.

    Each of another concept, which is kept in its other styles; only concepts that are there in
    every style take part. Drawn with a fixed seed. Raises ValueError if there are too few.
    """
    rng, whole = random.Random(seed), []
    for group in pairs.concepts:
        styles = {pairs.table["style"][i]: i for i in group}
        if len(styles) == len(STYLES):
            whole.append([styles[style] for style in STYLES])
    if len(whole) < count:
        raise ValueError(f"{len(whole)} concepts have every style; {count} were asked for")
    chosen = {rng.choice(rows) for rows in rng.sample(whole, count)}
    kept = [i for i in range(len(pairs)) if i not in chosen]
    return pairs.take(kept), pairs.take(sorted(chosen))


def emoji_hash() -> str:
    """SHA-256 over both splits, as written on every model card."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update((EMOJI / f"{split}.parquet").read_bytes())
    return digest.hexdigest()


def load_pairs(source, split: str = "train") -> Pairs:
    """Pairs of your own: a folder with metadata.jsonl, or the name of a dataset on the hub.

    The file has one line a picture, {"file_name": "cat.png", "text": "a cat"}, as the
    `imagefolder` of `datasets` has it; `split` is one of the hub dataset's. Pictures are
    fitted into a white square of 64 pixels. Raises ValueError in one sentence.
    """
    source = str(source)
    if os.path.isdir(source):
        rows = _folder_rows(Path(source))
    elif source.count("/") == 1 and "" not in source.split("/") and source[0] not in "./~":
        rows = _hub_rows(source, split)
    else:
        raise ValueError(
            f"{_short(source)} is neither a folder on disk nor a hub name like owner/pictures; "
            "check the spelling."
        )
    fitted, texts = [], []
    for place, picture, name, text in rows:
        try:
            fitted.append(_fit(read(picture, name)))
        except PictureError as error:
            raise ValueError(f"{place}: {error}") from None
        texts.append(text)
    pictures = torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous()
    return Pairs(pictures, {"text": texts})


def _folder_rows(folder: Path) -> list[tuple]:
    """(place, path, name, text) of every line of metadata.jsonl, all checked."""
    form = '{"file_name": "cat.png", "text": "a cat"}'
    path = folder / "metadata.jsonl"
    name = f"{folder.resolve().name}/metadata.jsonl"
    try:
        lines = files.read_text(path, MAX_METADATA).split("\n")
    except files.Unreadable as reason:
        raise ValueError(
            f"{name} {reason}; write it as UTF-8 text with a line like {form} a picture."
        ) from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{place} is not a JSON object; write {form}.")
        for key in ("file_name", "text"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise ValueError(f"{place} has no {key}; write {form}.")
        picture = Path(os.path.normpath(folder / row["file_name"]))
        shown = _short(row["file_name"])
        if not picture.is_relative_to(os.path.normpath(folder)):
            raise ValueError(f"{place}: {shown} is outside of the folder; move it in.")
        if not os.path.isfile(picture):
            raise ValueError(f"{place}: {shown} is not there; add it or delete the line.")
        rows.append((place, picture, shown, row["text"]))
    if not rows:
        raise ValueError(f"{name} has no rows; write a line like {form} a picture.")
    return rows


def _hub_rows(name: str, split: str) -> Iterator[tuple]:
    """(place, bytes, name, text) of every row of a dataset on the hub."""
    import datasets
    from huggingface_hub import HfApi

    from utils.doors.hub import SECONDS

    try:
        if not datasets.config.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=SECONDS)  # load_dataset retries for long
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub's, the network's and every builder's own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{_short(name)} is no folder on disk, and the hub does not give its "
            f"{_short(split)} split ({reason[:120]}); check the name and the connection."
        ) from None
    columns = rows.features
    image = next((k for k, v in columns.items() if isinstance(v, datasets.Image)), None)
    texts = (k for k in ("text", "caption") if k in columns and columns[k].dtype == "string")
    text = next(texts, None)
    if image is None or text is None or not len(rows):
        raise ValueError(
            f"{name} needs rows with a picture and a text or caption; it has {len(rows)} rows "
            f"with {', '.join(columns)}: choose another dataset."
        )
    rows = rows.cast_column(image, datasets.Image(decode=False))
    for number, row in enumerate(rows):
        place = f"{name}, row {number}"
        if not (row[text] or "").strip():
            raise ValueError(f"{place} has no {text}; choose another split or dataset.")
        picture = row[image] or {}
        yield place, picture.get("bytes") or picture.get("path") or b"", "the picture", row[text]


def _short(value: str) -> str:
    """A text in quotes, on one line, cut when it is long."""
    return repr(value if len(value) <= 60 else value[:57] + "…")


def _fit(picture: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] → (SIDE, SIDE, 3) uint8, the whole picture on a white square."""
    image = to_pil(picture)
    width, height = (max(1, round(side * SIDE / max(image.size))) for side in image.size)
    page = Image.new("RGB", (SIDE, SIDE), "white")
    corner = (SIDE - width) // 2, (SIDE - height) // 2
    page.paste(image.resize((width, height), Image.LANCZOS), corner)
    return np.asarray(page)


@given.takes(pictures="pictures")
def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Small random changes that keep a picture's meaning: no flips (arrows, letters).

    pictures: (B, 3, H, W) float in [0, 1]. Returns the same shape. Turns up to 15°, shears,
    scales 0.75–1.1, shifts up to 10 %; hue up to 17°, saturation, contrast, brightness; one
    in ten grey.
    """
    b, device = len(pictures), pictures.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(b, *shape).uniform_(low, high, generator=generator)

    angle, scale = uniform(-0.26, 0.26), uniform(0.9, 1.33)
    shear, shift = uniform(-0.15, 0.15), uniform(-0.2, 0.2, 2)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([cos, -sin + shear, shift[:, 0], sin, cos, shift[:, 1]], 1)
    grid = F.affine_grid(matrix.view(b, 2, 3).to(device), pictures.shape, align_corners=False)
    # sampling the negative pads with white
    moved = 1 - F.grid_sample(1 - pictures, grid, align_corners=False)

    grey = moved.mean(1, keepdim=True)
    saturation = uniform(0.4, 1.6, 1, 1, 1)
    saturation[uniform(0, 1, 1, 1, 1) < 0.1] = 0
    contrast, brightness = uniform(0.6, 1.2, 1, 1, 1), uniform(-0.15, 0.15, 1, 1, 1)
    colour = (moved - grey) * saturation.to(device)
    # a turn about the grey axis: v·cos θ + (k × v)·sin θ with k = (1, 1, 1)/√3
    hue = uniform(-0.3, 0.3, 1, 1, 1).to(device)
    turned = (colour.roll(1, 1) - colour.roll(-1, 1)) * (hue.sin() / 3**0.5)
    coloured = grey + colour * hue.cos() + turned
    # contrast about white, so that the page stays nearly white
    return (1 - (1 - coloured) * contrast.to(device) + brightness.to(device)).clamp(0, 1)


def draw(pairs: Pairs, size: int, rng: random.Random) -> list[int]:
    """Row numbers for one batch, each of another concept as long as there are enough.

    So no caption of the batch fits two of its pictures.
    """
    groups = pairs.concepts
    if not groups:
        raise ValueError("there are no pairs to draw from; choose others")
    chosen = rng.sample(groups, min(size, len(groups)))
    chosen += rng.choices(groups, k=size - len(chosen))
    return [rng.choice(group) for group in chosen]


@given.takes(size="from 1", seed="whole", step="whole")
def batch(
    pairs: Pairs, size: int, seed: int, step: int, device=None, languages=LANGUAGES
) -> tuple[Tensor, list[str]]:
    """The `step`-th training batch of a seeded run: augmented pictures and captions.

    Returns (B, 3, S, S) in [0, 1] and B strings. A batch depends on (seed, step) alone: a
    run that resumes needs no sampler state.
    """
    languages = [languages] if isinstance(languages, str) else list(languages)
    if not languages or any(language not in LANGUAGES for language in languages):
        raise ValueError(f"languages are {languages!r:.60}; choose from {', '.join(LANGUAGES)}")
    rng = random.Random(f"{seed}/{step}")
    rows = draw(pairs, size, rng)
    captions = [pairs.caption(i, rng, languages) for i in rows]
    pictures = pairs.pictures[torch.tensor(rows)].to(device or devices.pick())
    return augment(pictures.float().div_(255), devices.generator(seed, step)), captions
