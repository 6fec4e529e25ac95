"""Emoji-4, captions, augmentation, batches, and pairs of one's own."""

import json
import random
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests import helpers
from utils import data
from utils import device as devices
from utils.data import LANGUAGES, STYLES, augment, batch, draw, load_emoji, load_pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits():
    return {split: load_emoji(split) for split in data.SPLITS}


def test_the_splits_share_no_concept(splits):
    train, unseen = (set(splits[s].table["concept"]) for s in ("train", "unseen"))
    assert not train & unseen
    assert len(unseen) == 150 and len(train) > 1700


def test_every_row_is_whole(splits):
    for pairs in splits.values():
        assert pairs.pictures.dtype == torch.uint8
        assert pairs.pictures.shape == (len(pairs), 3, 64, 64)
        assert {len(column) for column in pairs.table.values()} == {len(pairs)}
        assert set(pairs.table["style"]) == set(STYLES)
        for language in LANGUAGES:
            assert all(pairs.table[f"label_{language}"])
        assert all(pairs.table["hexcode"]) and all(pairs.table["group"])


def test_a_corner_of_nearly_every_picture_is_white(splits):
    corners = splits["train"].pictures[:, :, 0, 0]
    assert (corners > 240).all(1).float().mean() > 0.9


def test_the_card_counts_what_is_there(splits):
    card = (data.EMOJI / "README.md").read_text(encoding="utf-8")
    for split, pairs in splits.items():
        styles = [pairs.table["style"].count(style) for style in STYLES]
        counts = [split, len(pairs.concepts), len(pairs), *styles]
        assert f"| {' | '.join(map(str, counts))} |" in card


def test_the_hash_covers_both_files(tmp_path, monkeypatch):
    seen = set()
    monkeypatch.setattr(data, "EMOJI", tmp_path)
    for content in ("ab", "ac", "bb"):
        for split, letter in zip(data.SPLITS, content, strict=True):
            (tmp_path / f"{split}.parquet").write_text(letter)
        seen.add(data.emoji_hash())
    assert len(seen) == 3


TIMED = """
import io, time
from utils import data
began = time.perf_counter()
data.load_emoji("train")
print(time.perf_counter() - began)

import numpy as np
import pyarrow.parquet
from PIL import Image
column = pyarrow.parquet.read_table(data.EMOJI / "train.parquet")["image"].to_pylist()
began = time.perf_counter()
pictures = [np.asarray(Image.open(io.BytesIO(x["bytes"])).convert("RGB")) for x in column]
print(time.perf_counter() - began)
"""


@pytest.mark.slow
def test_loading_takes_less_than_3_seconds():
    """The first time in a process, with what it has to import.

    On a machine so slow that Pillow alone takes 2 to unpack the pictures: half more than that.
    """
    runs = [subprocess.check_output([sys.executable, "-c", TIMED]).split() for _ in range(3)]
    loading, unpacking = (min(map(float, seconds)) for seconds in zip(*runs, strict=True))
    assert loading < max(3, 1.5 * unpacking)


def test_datasets_reads_the_same_file(splits, tmp_path):
    path, pairs = str(data.EMOJI / "unseen.parquet"), splits["unseen"]
    theirs = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path))
    assert isinstance(theirs.features["image"], datasets.Image) and len(theirs) == len(pairs)
    for i in (0, 100, 723):
        row = theirs[i]
        picture = torch.from_numpy(np.array(row.pop("image").convert("RGB")))
        assert pairs.pictures[i].equal(picture.permute(2, 0, 1))
        assert row == pairs.row(i)


@pytest.mark.slow
def test_a_batch_of_256_takes_little_time(splits):
    pairs = splits["train"]
    best = min(elapsed(lambda step=step: batch(pairs, 256, 0, step, CPU)) for step in range(30))
    assert best < 0.2  # 0.1 when nothing else runs


def elapsed(action) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def test_an_unknown_split_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'test'; choose one of train, unseen"):
        load_emoji("test")


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "EMOJI", tmp_path)
    with pytest.raises(FileNotFoundError, match="unseen.parquet is missing"):
        load_emoji("unseen")


# Pairs and captions


def test_where_take_and_row(splits):
    pairs = splits["unseen"]
    fluent = pairs.where(style="fluent")
    assert set(fluent.table["style"]) == {"fluent"}
    i = pairs.table["style"].index("fluent")
    assert fluent.row(0) == pairs.row(i) and torch.equal(fluent.pictures[0], pairs.pictures[i])
    assert len(pairs.where(style="none")) == 0
    two = pairs.take([5, 2])
    assert two.row(1) == pairs.row(2) and torch.equal(two.pictures[0], pairs.pictures[5])


def is_chinese(text: str) -> bool:
    return any("一" <= letter <= "鿿" for letter in text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_keep_to_their_language(language, splits):
    pairs, rng = splits["train"], random.Random(0)
    captions = [pairs.caption(i, rng, [language]) for i in range(0, len(pairs), 7)]
    assert all(captions) and not any("{" in c or "None" in c for c in captions)
    share = sum(map(is_chinese, captions)) / len(captions)
    assert share > 0.9 if language == "zh" else share < 0.01


def test_captions_vary(splits):
    pairs, rng = splits["train"], random.Random(0)
    captions = {pairs.caption(100, rng) for _ in range(300)}
    assert len(captions) > 40
    assert 0.2 < sum(map(is_chinese, captions)) / len(captions) < 0.8


def test_a_skin_tone_is_often_said(splits):
    pairs = splits["train"]
    i = next(i for i, tone in enumerate(pairs.table["skin_tone"]) if tone == "dark")
    rng = random.Random(0)
    for language, words in (("en", "dark skin tone"), ("zh", "深肤色")):
        said = [words in pairs.caption(i, rng, [language]) for _ in range(200)]
        assert 0.2 < sum(said) / 200 < 0.9


# Augmentation


def test_augmented_pictures_stay_pictures():
    pictures = torch.rand(40, 3, 64, 64)
    changed = augment(pictures, devices.generator(0))
    assert changed.shape == pictures.shape and changed.dtype == torch.float32
    assert 0 <= changed.min() and changed.max() <= 1
    assert not torch.equal(changed, pictures)
    torch.testing.assert_close(augment(pictures, devices.generator(0)), changed, rtol=0, atol=0)
    assert not torch.equal(augment(pictures, devices.generator(1)), changed)


def test_a_white_page_stays_nearly_white():
    pages = augment(torch.ones(200, 3, 64, 64), devices.generator(3))
    assert pages.min() > 0.84  # brightness takes up to 0.15
    torch.testing.assert_close(pages.amax((2, 3)), pages.amin((2, 3)))  # no edge, no black corner


def test_nothing_is_mirrored():
    """A mark on the left stays left: arrows and letters have a side."""
    pictures = torch.ones(200, 3, 64, 64)
    pictures[:, :, 24:40, 8:20] = 0
    dark = 1 - augment(pictures, devices.generator(0)).mean(1)
    left, right = dark[:, :, :32].sum((1, 2)), dark[:, :, 32:].sum((1, 2))
    assert (left > right).all()


def test_other_sizes_are_augmented_too():
    assert augment(torch.rand(2, 3, 48, 32), devices.generator(0)).shape == (2, 3, 48, 32)


# Batches


def test_a_batch_depends_on_seed_and_step_alone(splits):
    pairs = splits["unseen"]
    pictures, captions = batch(pairs, 32, 1, 7, CPU)
    random.random(), torch.rand(3), batch(pairs, 8, 5, 5, CPU)
    again, same = batch(pairs, 32, 1, 7, CPU)
    assert torch.equal(again, pictures) and same == captions
    for seed, step in ((1, 8), (2, 7)):
        other, texts = batch(pairs, 32, seed, step, CPU)
        assert texts != captions and not torch.equal(other, pictures)


def test_a_batch_repeats_a_concept_only_when_it_must(splits):
    pairs = splits["unseen"]
    concepts = [pairs.table["concept"][i] for i in draw(pairs, 150, random.Random(0))]
    assert len(set(concepts)) == 150
    concepts = [pairs.table["concept"][i] for i in draw(pairs, 200, random.Random(0))]
    assert len(concepts) == 200 and len(set(concepts)) == 150


# Pairs of one's own


def fill(folder, rows, name="metadata.jsonl"):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (20, 10), "red").save(folder / "red.png")
    Image.new("RGBA", (10, 30), (0, 0, 0, 0)).save(folder / "clear.png")
    (folder / "deep").mkdir(exist_ok=True)
    Image.new("L", (700, 1)).save(folder / "deep" / "line.jpg")
    (folder / "notes.png").write_text("not a picture")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder


RED = {"file_name": "red.png", "text": "a red flag"}


def refusal(source, split="train") -> str:
    message = helpers.refusal(load_pairs, source, split)
    assert message.endswith(".")
    return message


def test_a_folder_of_pairs(tmp_path):
    rows = [
        RED,
        {"file_name": "clear.png", "text": "什么也没有", "more": 3},
        {"file_name": "deep/line.jpg", "text": "a line"},
        {"file_name": "./red.png", "text": "another caption of it"},
        "",
    ]
    pairs = load_pairs(fill(tmp_path / "mine", rows))
    assert pairs.pictures.dtype == torch.uint8 and pairs.pictures.shape == (4, 3, 64, 64)
    assert pairs.table == {"text": [row["text"] for row in rows[:4]]}
    red = pairs.pictures[0]
    assert red[:, 32, 32].tolist() == [255, 0, 0]  # the whole picture …
    assert red[:, 32, 0].tolist() == red[:, 32, 63].tolist() == [255, 0, 0]
    assert (red[:, :15] == 255).all() and (red[:, 49:] == 255).all()  # … on a white square
    assert (pairs.pictures[1] == 255).all()
    assert (pairs.pictures[2] < 50).any()  # even a line of one pixel is seen
    assert torch.equal(pairs.pictures[3], red)


def test_pairs_of_ones_own_make_batches(tmp_path):
    rows = [RED | {"text": f"caption {i}"} for i in range(5)]
    pairs = load_pairs(str(fill(tmp_path / "mine", rows)))
    pictures, captions = batch(pairs, 4, 0, 0, CPU)
    assert pictures.shape == (4, 3, 64, 64) and len(set(captions)) == 4
    assert set(captions) <= set(pairs.table["text"])


def test_datasets_reads_the_same_folder(tmp_path):
    folder = fill(tmp_path / "mine", [RED, {"file_name": "deep/line.jpg", "text": "a line"}])
    (folder / "notes.png").unlink(), (folder / "clear.png").unlink()
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert theirs["text"][:] == load_pairs(folder).table["text"]


def test_a_mark_before_the_first_line_is_no_fault(tmp_path):
    folder = fill(tmp_path / "mine", ["\ufeff" + json.dumps(RED) + "\r"])
    assert len(load_pairs(folder)) == 1


BROKEN = {
    "not JSON": ("file_name: red.png", "not a JSON object"),
    "a list": (["red.png", "red"], "not a JSON object"),
    "a number": ("7", "not a JSON object"),
    "cut": ('{"file_name": "red', "not a JSON object"),
    "too deep": ("[" * 100_000, "not a JSON object"),
    "no text": ({"file_name": "red.png"}, "has no text"),
    "an empty text": ({"file_name": "red.png", "text": " "}, "has no text"),
    "a text that is a number": ({"file_name": "red.png", "text": 7}, "has no text"),
    "no file name": ({"text": "red"}, "has no file_name"),
    "an empty file name": ({"file_name": "", "text": "red"}, "has no file_name"),
    "no such file": ({"file_name": "blue.png", "text": "blue"}, "'blue.png' is not there"),
    "a folder": ({"file_name": "deep", "text": "deep"}, "'deep' is not there"),
    "an odd file name": ({"file_name": "a\nb\x00.png", "text": "x"}, r"'a\nb\x00.png' is not"),
    "an endless file name": ({"file_name": "x" * 9999, "text": "x"}, "…' is not there"),
    "a file elsewhere": ({"file_name": "../x.png", "text": "x"}, "outside of the folder"),
    "an absolute path": ({"file_name": "/etc/passwd", "text": "x"}, "outside of the folder"),
    "not a picture": ({"file_name": "notes.png", "text": "x"}, "'notes.png' is not a picture"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_row_is_named_by_its_line(fault, tmp_path):
    row, cause = BROKEN[fault]
    row = json.dumps(row) if isinstance(row, list) else row
    message = refusal(fill(tmp_path / "mine", [RED, "", row, RED]))
    assert message.startswith("mine/metadata.jsonl, line 3") and cause in message
    assert len(message) < 300


def test_a_folder_without_metadata_is_told_how(tmp_path):
    message = refusal(fill(tmp_path / "mine", [RED], name="metadata.csv"))
    assert "mine/metadata.jsonl is missing" in message and '"file_name"' in message


def test_metadata_without_rows_is_named(tmp_path):
    assert "has no rows" in refusal(fill(tmp_path / "mine", ["", " "]))


def test_metadata_that_is_no_text_is_named(tmp_path):
    folder = fill(tmp_path / "mine", [])
    (folder / "metadata.jsonl").write_bytes(b"\xff\xfe{\x00")
    assert "not UTF-8" in refusal(folder)


@pytest.mark.parametrize(
    "source", ["", "mine", "./mine/x", "/no/where", "a/b/c", "a/", "x" * 9999, "a\nb", "\x00"]
)
def test_a_name_that_is_neither_folder_nor_dataset(source):
    message = refusal(source)
    assert "neither a folder on disk nor a hub name" in message and len(message) < 200


def test_a_hub_dataset_that_is_not_to_be_had(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = refusal("nobody/there-is-no-such")
    assert "'nobody/there-is-no-such' is no folder on disk" in message and "hub" in message


@pytest.fixture
def hub(monkeypatch):
    """A hub that gives the rows put into it."""

    def put(rows, features):
        rows = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)

    return put


@pytest.mark.parametrize("column", ["text", "caption"])
def test_a_hub_dataset(column, hub):
    image = Image.new("RGB", (30, 30), "blue")
    rows = [{"picture": image, column: f"blue {i}", "n": i} for i in range(3)]
    words = datasets.Value("string")
    hub(rows, {"n": datasets.Value("int64"), "picture": datasets.Image(), column: words})
    pairs = load_pairs("someone/blue")
    assert pairs.table == {"text": ["blue 0", "blue 1", "blue 2"]}
    assert pairs.pictures[2, :, 5, 5].tolist() == [0, 0, 255]


def test_a_hub_dataset_without_captions_is_described(hub):
    rows = [{"image": Image.new("RGB", (3, 3)), "label": 1}]
    hub(rows, {"image": datasets.Image(), "label": datasets.Value("int64")})
    message = refusal("someone/labels")
    assert "someone/labels" in message and "image, label" in message


def test_a_broken_row_of_a_hub_dataset_is_named(hub):
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    good = {"image": Image.new("RGB", (3, 3)), "text": "x"}
    hub([good, good | {"image": {"bytes": b"junk", "path": None}}], features)
    assert refusal("someone/junk").startswith("someone/junk, row 1: ")
    hub([good, good | {"image": None}], features)
    assert "row 1: the picture is empty" in refusal("someone/blind")
    hub([good, good | {"text": None}], features)
    assert refusal("someone/silent").startswith("someone/silent, row 1 has no text")


def test_a_caption_is_of_its_own_row(splits):
    pairs = splits["unseen"]
    for i in range(0, len(pairs), 5):
        for language in LANGUAGES:
            rng, row = random.Random(i), pairs.row(i)
            words = [row[f"label_{language}"], *row[f"keywords_{language}"]]
            for _ in range(20):
                said = pairs.caption(i, rng, [language])
                assert any(word in said for word in words)
                styles = {
                    style
                    for style in STYLES
                    for word in data.STYLE_WORDS[style]["en"]
                    if f" {word} drawing of " in said
                }
                assert styles <= {row["style"]}


def test_every_drawing_of_a_concept_is_drawn():
    pairs = data.Pairs(torch.zeros(24, 3, 4, 4, dtype=torch.uint8), {"concept": ["a"] * 24})
    rng = random.Random(0)
    assert {draw(pairs, 1, rng)[0] for _ in range(500)} == set(range(24))


def test_augmentation_turns_scales_shifts_and_tints():
    page = torch.ones(300, 3, 32, 32)
    page[:, 1:, 12:20, 8:24] = 0  # a red bar, wider than high
    changed = augment(page, devices.generator(0))
    ink = 1 - changed.mean(1)
    ink = (ink > ink.amax((1, 2), keepdim=True) / 2).float()
    area = ink.sum((1, 2))
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    x = x - ((ink * x).sum((1, 2)) / area)[:, None, None]
    y = y - ((ink * y).sum((1, 2)) / area)[:, None, None]
    centre = (ink * torch.arange(32.0)).sum((1, 2)) / area
    spread = [(ink * part).sum((1, 2)) for part in (2 * x * y, x * x - y * y)]
    angle = 0.5 * torch.atan2(*spread).rad2deg()
    assert angle.min() < -10 and angle.max() > 10
    assert centre.max() - centre.min() > 5
    assert area.max() / area.min() > 1.6
    colour = changed[:, :, 14:18, 14:18].mean((2, 3))
    grey = (colour.amax(1) - colour.amin(1) < 1e-3).float().mean()
    assert 0.03 < grey < 0.2
    assert (colour[:, 1] - colour[:, 2]).abs().max() > 0.2  # red became another hue
