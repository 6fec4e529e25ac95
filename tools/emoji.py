"""Builds Emoji-4, the course's dataset: `python -m tools.emoji`.

Fetches five pinned npm packages into a temporary folder, draws every emoji on white at
64×64, and writes `assets/emoji/{train,unseen}.parquet` with the dataset card. The same
packages give the same bytes. Needs npm and, from the test extras, cairosvg.
"""

import argparse
import hashlib
import io
import json
import random
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

from utils.data import STYLES
from utils.paths import EMOJI

SIZE = 64
UNSEEN_CONCEPTS = 150
UNSEEN_SEED = 0
TONED_STYLE = "twemoji"  # the style that also carries skin-tone variants
TONES = ["none", "light", "medium-light", "medium", "medium-dark", "dark"]
WEBP = {"format": "WEBP", "quality": 90, "method": 6, "use_sharp_yuv": True}

# name, version, SHA-256 of the tarball that the registry serves
PACKAGES = {
    "noto": (
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "twemoji": (
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
    "openmoji": (
        "openmoji",
        "17.0.0",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    ),
    "fluent": (
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "labels": (
        "emojibase-data",
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
}
FOLDERS = {
    "noto": "img/google/64",
    "twemoji": "img/twitter/64",
    "openmoji": "color/svg",
    "fluent": "assets",
}


def fetch(name: str, version: str, sha256: str, folder: Path) -> Path:
    """Download one npm package into `folder` and return the path of its tarball."""
    spec = f"{name}@{version}"
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", spec], cwd=folder, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise SystemExit("npm was not found; install Node.js to rebuild the dataset") from None
    if done.returncode:
        raise SystemExit(f"npm could not fetch {spec}: {done.stderr.strip()[-200:]}")
    tarball = folder / done.stdout.strip().splitlines()[-1]
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{spec} has SHA-256 {found}, expected {sha256}; the package changed")
    return tarball


def plain(hexcode: str) -> str:
    """A hexcode without variation selectors, the key on which the packages agree."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def pictures(tarball: Path, folder: str) -> dict[str, bytes]:
    """Picture files of one package by plain hexcode."""
    found = {}
    with tarfile.open(tarball) as tar:
        for member in tar:
            path = Path(member.name)
            if member.isfile() and str(path.parent) == f"package/{folder}":
                found[plain(path.stem)] = tar.extractfile(member).read()
    return found


def read_json(tarball: Path, name: str):
    with tarfile.open(tarball) as tar:
        return json.load(tar.extractfile(f"package/{name}"))


def available(style: str, tarball: Path) -> set[str] | None:
    """Hexcodes a vendor really draws; the datasource packages say so in a table."""
    if style not in ("noto", "twemoji"):
        return None
    flag = "has_img_google" if style == "noto" else "has_img_twitter"
    codes = set()
    for entry in read_json(tarball, "emoji.json"):
        for drawn in [entry, *entry.get("skin_variations", {}).values()]:
            if drawn[flag]:
                codes.add(plain(drawn["unified"]))
    return codes


def on_white(data: bytes) -> bytes:
    """Any picture file (or SVG) → 64×64 RGB on white, as WebP bytes."""
    if data.lstrip()[:4] in (b"<svg", b"<?xm"):
        import cairosvg

        data = cairosvg.svg2png(bytestring=data, output_width=4 * SIZE, output_height=4 * SIZE)
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    page = page.convert("RGB")
    if page.size != (SIZE, SIZE):
        page = page.resize((SIZE, SIZE), Image.LANCZOS)
    out = io.BytesIO()
    page.save(out, **WEBP)
    return out.getvalue()


def rows(tarballs: dict[str, Path]) -> list[dict]:
    """One row per picture: concepts in Unicode order, styles in the order of STYLES."""
    english = read_json(tarballs["labels"], "en/data.json")
    chinese = {e["hexcode"]: e for e in read_json(tarballs["labels"], "zh/data.json")}
    groups = read_json(tarballs["labels"], "meta/groups.json")
    drawings = {s: pictures(tarballs[s], FOLDERS[s]) for s in STYLES}
    for style in STYLES:
        real = available(style, tarballs[style])
        if real is not None:
            drawings[style] = {k: v for k, v in drawings[style].items() if k in real}

    table = []
    for entry in sorted(english, key=lambda e: e.get("order", 0)):
        if "group" not in entry:  # regional indicators: halves of flags, not emoji
            continue
        code = plain(entry["hexcode"])
        drawn = [s for s in STYLES if code in drawings[s]]
        if len(drawn) < 3:
            continue
        translated = chinese[entry["hexcode"]]
        about = {
            "concept": code,
            "label_en": entry["label"],
            "label_zh": translated["label"],
            "keywords_en": [t for t in entry.get("tags", []) if t != entry["label"]],
            "keywords_zh": [t for t in translated.get("tags", []) if t != translated["label"]],
            "group": groups["groups"][str(entry["group"])],
            "subgroup": groups["subgroups"][str(entry["subgroup"])],
        }
        variants = [(code, "none", s) for s in drawn]
        for skin in entry.get("skins", []):
            tone = skin["tone"]
            tones = tone if isinstance(tone, list) else [tone]
            if len(set(tones)) == 1 and plain(skin["hexcode"]) in drawings[TONED_STYLE]:
                variants.append((plain(skin["hexcode"]), TONES[tones[0]], TONED_STYLE))
        for hexcode, tone, style in variants:
            table.append(
                {
                    "image": {"bytes": on_white(drawings[style][hexcode]), "path": None},
                    "hexcode": hexcode,
                    **about,
                    "style": style,
                    "skin_tone": tone,
                }
            )
    return table


CARD = """---
license: other
task_categories: [zero-shot-image-classification, text-to-image]
language: [en, zh]
size_categories: [1K<n<10K]
---
# Emoji-4

{concepts} concepts, each drawn in up to four styles, each with an English and a Chinese label
and keywords. {pictures} pictures, 64×64 RGB on white. Built by `python -m tools.emoji`
from pinned packages; the same packages give the same bytes.

| split | concepts | pictures | {styles} |
|---|---|---|{bars}|
{counts}

`unseen` holds {unseen} concepts drawn uniformly with seed {seed}. No drawing of them, in any
style or skin tone, is in `train`. No model of this course is trained on `unseen`.

## Columns
`image` (WebP, quality 90) · `hexcode` of the drawing · `concept`, the hexcode without skin tone ·
`label_en`, `label_zh`, `keywords_en`, `keywords_zh` · `group`, `subgroup` (Unicode's) ·
`style` (one of {style_list}) · `skin_tone` (`none` or one of five; only `{toned}` carries the five).

## Licences and attribution
The pictures were flattened on white, scaled to 64×64 and stored as WebP; nothing else was changed.

| style | drawings | licence | from (npm) |
|---|---|---|---|
| `noto` | Noto Emoji, © Google LLC | [Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0) | {noto} |
| `twemoji` | Twemoji, © Twitter, Inc. and other contributors | [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/) | {twemoji} |
| `openmoji` | [OpenMoji](https://openmoji.org), the open-source emoji and icon project | [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/) | {openmoji} |
| `fluent` | Fluent Emoji 3D, © Microsoft Corporation | MIT | {fluent} |

Labels and keywords: `{labels}`, MIT, © Miles Johnson, after Unicode CLDR
(Unicode License v3, © Unicode, Inc.).
The OpenMoji rows, and works made from those pictures, stay under CC BY-SA 4.0.

## Limits
Emoji are drawings, not photographs. Labels are short nouns written by Unicode; Chinese labels are
translations of them. Flags and symbols are {share:.0f} % of the concepts.
"""  # noqa: E501


def card(table: list[dict], splits: dict[str, list[dict]]) -> str:
    counts = []
    for name, part in splits.items():
        by_style = Counter(r["style"] for r in part)
        cells = [name, len({r["concept"] for r in part}), len(part)]
        cells += [by_style[s] for s in STYLES]
        counts.append("| " + " | ".join(str(c) for c in cells) + " |")
    group = {r["concept"]: r["group"] for r in table}
    share = 100 * sum(g in ("flags", "symbols") for g in group.values()) / len(group)
    return CARD.format(
        concepts=len(group),
        pictures=len(table),
        styles=" | ".join(STYLES),
        bars="|".join(["---"] * len(STYLES)),
        counts="\n".join(counts),
        unseen=UNSEEN_CONCEPTS,
        seed=UNSEEN_SEED,
        style_list=", ".join(f"`{s}`" for s in STYLES),
        toned=TONED_STYLE,
        share=share,
        **{k: f"{name} {version}" for k, (name, version, _) in PACKAGES.items()},
    )


def build(folder: Path) -> dict[str, int]:
    """Write both splits and the card into `folder`; returns rows per split."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    text = Value("string")
    features = Features(
        image=ImageFeature(),
        hexcode=text,
        concept=text,
        label_en=text,
        label_zh=text,
        keywords_en=List(text),
        keywords_zh=List(text),
        group=text,
        subgroup=text,
        style=text,
        skin_tone=text,
    )
    with tempfile.TemporaryDirectory() as tmp:
        tarballs = {k: fetch(*package, Path(tmp)) for k, package in PACKAGES.items()}
        table = rows(tarballs)
    concepts = list(dict.fromkeys(r["concept"] for r in table))
    unseen = set(random.Random(UNSEEN_SEED).sample(concepts, UNSEEN_CONCEPTS))
    splits = {
        "train": [r for r in table if r["concept"] not in unseen],
        "unseen": [r for r in table if r["concept"] in unseen],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in splits.items():
        Dataset.from_list(part, features=features).to_parquet(folder / f"{name}.parquet")
    (folder / "README.md").write_text(card(table, splits), encoding="utf-8")
    return {name: len(part) for name, part in splits.items()}


def main():
    parser = argparse.ArgumentParser(description="Build the Emoji-4 dataset.")
    parser.add_argument("--out", type=Path, default=EMOJI, help="folder to write into")
    folder = parser.parse_args().out
    for name, count in build(folder).items():
        print(f"{folder / name}.parquet: {count} pictures")


if __name__ == "__main__":
    main()
