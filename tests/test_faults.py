"""Every door that takes something from outside, tried with what should not come through it.

Each answers with a ValueError of one sentence: the thing, the cause, the remedy. What each
part does with its own faults is tested beside it; here they go the whole way, from an upload
to the red line of a widget.
"""

import contextlib
import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import threading
import time
import zlib
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HFValidationError
from PIL import EpsImagePlugin, Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizerFast

from tests import tiny
from tests.helpers import REMEDY, red_line, refusal
from utils import checkpoints, data, files, pictures, tensors, widgets
from utils.bricks.clip import CLIP
from utils.bricks.zero_shot import class_vectors, classify
from utils.paths import ROOT


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return tiny.model().eval()


# Pictures


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png(side: int = 50_000) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def photo(side: int = 40) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(noise)


FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (40, 40), "red")]}
NOT_PICTURES = {
    "text": (b"not a picture", "is not a picture"),
    "zeros": (bytes(1000), "is not a picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is not a picture"),
    "pickle": (pickle.dumps({"a": 1}), "is not a picture"),
    "postscript": (encoded(photo(), "EPS"), "is not a picture"),
    "nothing": (b"", "is empty (0 bytes)"),
    "half a PNG": (encoded(photo())[:2000], "damaged or cut short"),
    "half a JPEG": (encoded(photo(), "JPEG")[:900], "damaged or cut short"),
    "half a WebP": (encoded(photo(), "WEBP")[:300], "cut short"),
    "half a GIF": (encoded(photo(), "GIF")[:1500], "damaged or cut short"),
    "half a TIFF": (encoded(photo(), "TIFF")[:1500], "damaged or cut short"),
    "50,000 × 50,000": (huge_png(), "too many"),
    "50 MB and more": (bytes(50_000_001), "is larger than 50 MB"),
}
ODD_PICTURES = {
    "animated GIF": encoded(photo(), "GIF", **FRAMES),
    "animated WebP": encoded(photo(), "WEBP", **FRAMES),
    "animated PNG": encoded(photo(), "PNG", **FRAMES),
    "CMYK": encoded(photo().convert("CMYK"), "JPEG"),
    "16 bits": encoded(Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40)),
    "transparent": encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 0))),
    "1 bit": encoded(photo().convert("1")),
    "1 pixel": encoded(photo(1)),
    "a line": encoded(Image.new("RGB", (5000, 1))),
}


def file(content: bytes, name: str = "holiday.png") -> tuple:
    about = {"name": name, "type": "image/png", "size": len(content)}
    return (about | {"content": memoryview(content), "last_modified": datetime.now(UTC)},)


@pytest.fixture
def namer(clip, live):
    """A widget as in lesson 04: labels, an upload, bars. Returns button, field and answer."""
    button, labels = widgets.upload(), widgets.text("Labels", "cat; dog")

    def draw(typed, picture):
        names = widgets.prompts(typed)
        picture = torch.zeros(3, 8, 8) if picture is None else picture
        bars = widgets.bars(names, classify(clip, picture[None], names)[0])
        return widgets.thumbnail(picture, alt=typed) + bars

    return button, labels, live([labels, button], draw)


@pytest.mark.parametrize("kind", NOT_PICTURES)
def test_a_wrong_upload_is_one_red_line(kind, namer):
    content, cause = NOT_PICTURES[kind]
    button, _, answer = namer
    good = answer.value
    assert good.count("<tr>") == 2
    button.value = file(content)
    line = red_line(answer.value)
    assert line.startswith("holiday.png ") and cause in line and REMEDY.search(line)
    button.value = ()
    assert answer.value == good


@pytest.mark.parametrize("kind", ODD_PICTURES)
def test_an_odd_upload_is_a_picture_like_any_other(kind, namer):
    button, _, answer = namer
    button.value = file(ODD_PICTURES[kind])
    assert answer.value.count("<tr>") == 2 and "nan" not in answer.value
    assert answer.value.startswith('<img src="data:image/webp;base64,')


@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[2J\x00.png", "x" * 5000 + ".png", "\udcff.png"])
def test_an_odd_file_name_stays_on_its_line(name, namer):
    button, _, answer = namer
    button.value = file(b"junk", name)
    line = red_line(answer.value)
    assert ".png is not a picture that can be read; use " in line and line.isprintable()


def test_no_upload_starts_another_program(monkeypatch):
    def start(*_, **__):
        raise AssertionError("PostScript is run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    monkeypatch.setattr(subprocess, "Popen", start)
    assert "use PNG" in refusal(pictures.read, encoded(photo(), "EPS"), "drawing.png")


@pytest.mark.parametrize("source", ["", ".", "none.png", "\x00", "x" * 5000, "a\nb/c\nd.png"])
def test_a_path_without_a_picture(source):
    refusal(pictures.read, source)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs an endless file")
def test_an_endless_file_is_not_read():
    assert refusal(pictures.read, "/dev/zero") == "zero is no file; choose another file."


@pytest.fixture
def pipe(tmp_path) -> Path:
    """A pipe into which nobody writes: whoever opens it waits."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no pipes in folders")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_nobody_waits_for_a_pipe(pipe, monkeypatch):
    assert refusal(pictures.read, pipe) == "pipe is no file; choose another file."
    folder = pipe.parent
    pipe.rename(folder / "metadata.jsonl")
    assert "metadata.jsonl is no file; write " in refusal(data.load_pairs, folder)
    (folder / "metadata.jsonl").rename(folder / "unseen.parquet")
    monkeypatch.setattr(data, "EMOJI", folder)
    assert refusal(data.load_emoji, "unseen").startswith("unseen.parquet is no file; restore ")
    (folder / "unseen.parquet").rename(folder / "clip.json")
    assert refusal(checkpoints.card, "clip", folder).startswith("The card clip.json is no file; ")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs an endless file")
def test_endless_metadata_is_not_read(tmp_path):
    (tmp_path / "metadata.jsonl").symlink_to("/dev/zero")
    assert "metadata.jsonl is no file" in refusal(data.load_pairs, tmp_path)


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    path = tmp_path / "cat.png"
    path.write_bytes(encoded(photo()))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    assert refusal(pictures.read, path) == "cat.png may not be read; choose another file."


def test_a_file_beyond_the_bound_is_not_read(tmp_path):
    (tmp_path / "long").write_bytes(bytes(2_000_001))
    assert files.read(tmp_path / "long", 2_000_001) == bytes(2_000_001)
    with pytest.raises(files.Unreadable, match="^is larger than 2 MB$"):
        files.read(tmp_path / "long", 2_000_000)


def test_a_cut_file_that_pil_has_opened_is_named():
    lazy = Image.open(io.BytesIO(encoded(photo(), "JPEG")[:900]))
    assert "cut short" in refusal(pictures.read, lazy)


# Prompts and labels

TYPED = {
    "unknown scripts": "𓂀𓆣; ꙮ; ᚠᛇᚻ; 𒀀",
    "right to left": "مرحبا بالعالم; שלום",
    "turned": "\u202ecat\u202c; \u2066dog\u2069",
    "control characters": "\x00\x07\x1b[2J\x7f\x9b; \ufeff\u200b",
    "half a surrogate": "\ud83d; cat",
    "combining": "e" + "\u0301" * 400,
    "families": "👨‍👩‍👧‍👦; 🏳️‍🌈; 1️⃣",
    "markup": "<script>alert(1)</script>; <img src=x onerror=alert(1)>",
    "formats": "{}; %s; {0.__class__}; $(id)",
    "special tokens": "<|startoftext|>; <|endoftext|>; <|endoftext|> cat",
    "full": "x" * widgets.MAX_TEXT,
}
NO_PROMPTS = {
    "nothing": ("", "There is no text yet"),
    "spaces": (" \t\n;;\u3000\u2028", "There is no text yet"),
    "endless": ("a" * 100_000, "A prompt has 100000 characters"),
    "endless list": ("cat\n" * 100_000, "100000 prompts are more than"),
}


@pytest.mark.parametrize("kind", TYPED)
def test_any_prompt_gets_its_bars(kind, namer):
    _, labels, answer = namer
    labels.value = TYPED[kind]
    assert answer.value.count("<tr>") == len(widgets.prompts(TYPED[kind]))
    assert "<script" not in answer.value and "<img src=x" not in answer.value
    assert not re.search(r"nan|inf", answer.value.split("<table", 1)[1].split(">", 1)[1][-40:])


@pytest.mark.parametrize("kind", NO_PROMPTS)
def test_no_prompt_is_one_red_line_and_can_be_mended(kind, namer):
    typed, cause = NO_PROMPTS[kind]
    _, labels, answer = namer
    good = answer.value
    labels.value = typed
    line = red_line(answer.value)
    assert line.startswith(cause) and REMEDY.search(line)
    labels.value = "cat; dog"
    assert answer.value == good


def test_an_endless_error_is_cut():
    with pytest.raises(KeyError) as error:
        {}["x" * 100_000]
    assert len(widgets.sentence(error.value)) < 300
    assert len(widgets.red(widgets.sentence(error.value))) < 600


@pytest.mark.parametrize(
    "prompt", ["", "a" * 100_000, "\ud800" * 50, "\x00", "𓂀" * 5000, "\u202e" + "مرحبا " * 999]
)
def test_any_string_becomes_a_vector_that_company_does_not_change(prompt, clip):
    with torch.no_grad():
        alone, pair = clip.encode_text([prompt]), clip.encode_text([prompt, "a cat"])
    assert alone.shape == (1, tiny.DIM) and alone.isfinite().all()
    torch.testing.assert_close(pair[:1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompts", ["a cat", [], [None], [b"cat"], [["cat"]], {"cat": 1}.items()])
def test_what_is_no_list_of_strings_is_refused(prompts, clip):
    refusal(clip.encode_text, prompts)


@pytest.mark.parametrize("labels", [[], (), None, "cat", [None], [1], [""], ["cat", " \n"], [b"x"]])
def test_labels_that_are_none_are_refused(labels, clip):
    assert "labels" in refusal(class_vectors, clip, labels)
    refusal(classify, clip, torch.rand(1, 3, 8, 8), labels)


@pytest.mark.parametrize(
    "templates", [[], (), None, "a cat", ["a cat"], ["{} {}"], ["{}", ""], [None], ["x" * 9999]]
)
def test_templates_without_one_place_for_the_label_are_refused(templates, clip):
    assert "template" in refusal(class_vectors, clip, ["cat"], templates)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 8, 8, 3), (1, 3, 0, 8), (8, 8)])
def test_pictures_of_another_shape_are_refused(shape, clip):
    message = refusal(classify, clip, torch.rand(shape), ["cat"])
    assert str(tuple(shape)) in message


# A folder of pairs


def folder_of(tmp_path, content: bytes, text: str = "a cat") -> Path:
    (tmp_path / "cat.png").write_bytes(content)
    row = {"file_name": "cat.png", "text": text}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("kind", NOT_PICTURES)
def test_a_row_with_a_wrong_picture_is_named(kind, tmp_path):
    content, cause = NOT_PICTURES[kind]
    message = refusal(data.load_pairs, folder_of(tmp_path, content))
    assert message.startswith(f"{tmp_path.name}/metadata.jsonl, line 1: 'cat.png' ")
    assert cause in message


@pytest.mark.parametrize("kind", ODD_PICTURES)
def test_a_row_with_an_odd_picture_is_read(kind, tmp_path):
    pairs = data.load_pairs(folder_of(tmp_path, ODD_PICTURES[kind]))
    assert pairs.pictures.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("text", ["\ud800", "\x00", "x" * 100_000, "مرحبا", "{label}", "<b>"])
def test_any_caption_can_be_trained_on(text, tmp_path, clip):
    pairs = data.load_pairs(folder_of(tmp_path, encoded(photo()), text))
    images, captions = data.batch(pairs, 2, 0, 0, torch.device("cpu"))
    assert captions == [text, text]
    with torch.no_grad():
        assert clip(images, captions).isfinite().all()


@pytest.mark.parametrize("fault", ["a folder", "a link to itself", "unreadable bytes"])
def test_metadata_that_is_no_file_is_named(fault, tmp_path):
    path = tmp_path / "metadata.jsonl"
    if fault == "a folder":
        path.mkdir()
    elif fault == "a link to itself":
        path.symlink_to(path)
    else:
        path.write_bytes(b"\xff\xfe\x00")
    assert "metadata.jsonl is " in refusal(data.load_pairs, tmp_path)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "a pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "no pictures": lambda path: path.write_bytes(table({"x": [1]})),
    "broken pictures": lambda path: path.write_bytes(table({"image": [{"bytes": b"junk"}]})),
    "pictures that are null": lambda path: path.write_bytes(with_images(path, lambda _: None)),
    "pictures of null": lambda path: path.write_bytes(with_images(path, lambda _: {"bytes": None})),
    "numbers for pictures": lambda path: path.write_bytes(with_images(path, lambda i: i)),
    "small pictures": lambda path: path.write_bytes(with_images(path, lambda _: {"bytes": SMALL})),
    "a bomb": lambda path: path.write_bytes(with_images(path, lambda _: {"bytes": huge_png()})),
    "half a bomb": lambda path: path.write_bytes(
        with_images(path, lambda _: {"bytes": huge_png(13_000)})
    ),
    "labels that are null": lambda path: path.write_bytes(
        table(rows(path) | {"label_en": [None] * 724})
    ),
}
SMALL = encoded(photo(40))


def rows(path: Path) -> dict:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pydict()


def with_images(path: Path, image) -> bytes:
    """A parquet file with other pictures; image: number of the row → what stands there."""
    columns = rows(path)
    return table(columns | {"image": [image(i) for i in range(len(columns["image"]))]})


@pytest.mark.parametrize("seed", range(12))
def test_random_bytes_in_a_page_of_parquet_are_noticed_or_harmless(seed, tmp_path, monkeypatch):
    rng = np.random.default_rng(seed)
    content = bytearray((data.EMOJI / "unseen.parquet").read_bytes())
    place = int(rng.integers(4, len(content) - 100)) if seed else 8
    content[place : place + 16] = rng.bytes(16)
    (tmp_path / "unseen.parquet").write_bytes(content)
    monkeypatch.setattr(data, "EMOJI", tmp_path)
    try:
        pairs = data.load_emoji("unseen")
    except ValueError as error:
        assert str(error).startswith("unseen.parquet is damaged; restore ")
    else:
        assert pairs.pictures.shape == (724, 3, 64, 64)


def table(columns: dict) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_emoji_file_is_named(fault, tmp_path, monkeypatch):
    path = tmp_path / "unseen.parquet"
    path.write_bytes((data.EMOJI / "unseen.parquet").read_bytes())
    DAMAGE[fault](path)
    monkeypatch.setattr(data, "EMOJI", tmp_path)
    message = refusal(data.load_emoji, "unseen")
    assert message.startswith("unseen.parquet is damaged; restore assets/emoji")


# A checkpoint: what every model refuses is in test_shipped.py

CONFIG = tiny.model().config


@pytest.mark.parametrize(
    "changes",
    [
        {"image": tiny.VIT | {"tower": "vgg"}},
        {"image": tiny.VIT | {"colour": 1}},
        {"image": tiny.VIT | {"width": "wide"}},
        {"image": tiny.VIT | {"heads": 0}},
        {"merges": 3},
        {"dim": -1},
    ],
    ids=str,
)
def test_weights_of_a_clip_with_other_arguments_are_refused(changes, tmp_path):
    checkpoints.save(tiny.model(), "clip", {}, tmp_path)
    path = tmp_path / "clip.safetensors"
    save_file(tensors.read(path)[0], path, {"config": json.dumps(CONFIG | changes)})
    (tmp_path / "clip.json").write_text(json.dumps({"sha256": tensors.sha256(path)}))
    message = refusal(checkpoints.load, "clip", torch.device("cpu"), tmp_path)
    assert message.startswith("clip.safetensors ") and "tools.pretrain clip" in message


# transformers' folders and the hub


def changed(folder: Path, part: str, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part] |= values
    (folder / "config.json").write_text(json.dumps(config))


def whole(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def prepared(folder: Path, **values) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewritten(folder: Path, name: str, value) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = value(tensors[name])
    save_file(tensors, folder / "model.safetensors")


QUERY = "text_model.encoder.layers.0.self_attn.q_proj.weight"
ALTERED = {
    "activation": lambda f: changed(f, "vision_config", hidden_act="swish"),
    "no activation": lambda f: changed(f, "text_config", hidden_act=None),
    "list of activations": lambda f: changed(f, "text_config", hidden_act=["gelu"]),
    "a word for a width": lambda f: changed(f, "vision_config", hidden_size="wide"),
    "no width": lambda f: changed(f, "text_config", hidden_size=None),
    "negative width": lambda f: changed(f, "vision_config", hidden_size=-32),
    "heads that do not divide": lambda f: changed(f, "vision_config", num_attention_heads=3),
    "no heads": lambda f: changed(f, "text_config", num_attention_heads=0),
    "patches that do not tile": lambda f: changed(f, "vision_config", image_size=33),
    "no patches": lambda f: changed(f, "vision_config", patch_size=0),
    "fewer layers": lambda f: changed(f, "text_config", num_hidden_layers=1),
    "negative layers": lambda f: changed(f, "vision_config", num_hidden_layers=-1),
    "more layers": lambda f: changed(f, "text_config", num_hidden_layers=3),
    "half a layer": lambda f: changed(f, "text_config", num_hidden_layers=1.5),
    "another context": lambda f: changed(f, "text_config", max_position_embeddings=7),
    "endless context": lambda f: changed(f, "text_config", max_position_embeddings=10**13),
    "endless width": lambda f: changed(f, "vision_config", hidden_size=2 * 10**12),
    "endless nesting": lambda f: (f / "config.json").write_text("[" * 100_000),
    "width of a giant": lambda f: changed(f, "vision_config", hidden_size=40_000),
    "pictures of a giant": lambda f: changed(f, "vision_config", image_size=100_000),
    "a million layers": lambda f: changed(f, "text_config", num_hidden_layers=10**6),
    "negative heads": lambda f: changed(f, "vision_config", num_attention_heads=-2),
    "heads that are no whole number": lambda f: changed(f, "text_config", num_attention_heads=2.0),
    "true for heads": lambda f: changed(f, "text_config", num_attention_heads=True),
    "another epsilon": lambda f: changed(f, "vision_config", layer_norm_eps=0.1),
    "four channels": lambda f: changed(f, "vision_config", num_channels=4),
    "another model": lambda f: whole(f, model_type="siglip"),
    "no number for a model": lambda f: whole(f, model_type=None),
    "width of nothing": lambda f: whole(f, projection_dim=0),
    "another mean": lambda f: prepared(f, image_mean=[0.5, 0.5, 0.5]),
    "another deviation": lambda f: prepared(f, image_std=[0.5, 0.5, 0.5]),
    "no mean at all": lambda f: prepared(f, do_normalize=False),
    "another mean in the new file": lambda f: (f / "processor_config.json").write_text(
        json.dumps({"image_processor": {"image_mean": [0.5, 0.5, 0.5]}})
    ),
    "no preprocessor": lambda f: (f / "preprocessor_config.json").write_text("[1]"),
    "beyond float32": lambda f: rewritten(f, QUERY, lambda w: w.double() + 1e200),
    "lists": lambda f: (f / "config.json").write_text('{"vision_config":[],"text_config":[]}'),
    "a query of another width": lambda f: rewritten(f, QUERY, lambda _: torch.ones(24, 5)),
    "a query that is a number": lambda f: rewritten(f, QUERY, lambda _: torch.tensor(1.0)),
    "no number": lambda f: rewritten(f, QUERY, lambda w: w * float("nan")),
    "whole numbers": lambda f: rewritten(f, "visual_projection.weight", torch.Tensor.char),
    "fewer merges": lambda f: (f / "merges.txt").write_text("a b\n"),
}


@pytest.mark.parametrize("fault", ALTERED)
def test_an_altered_folder_gets_one_sentence(fault, tmp_path):
    tiny.model().save_pretrained(tmp_path)
    ALTERED[fault](tmp_path)
    message = refusal(CLIP.from_pretrained, tmp_path)
    named = "merges" if fault == "fewer merges" else r"config\.json|model\.safetensors"
    assert re.search(named, message)


NO_FILES = {
    "a pipe": lambda path: os.mkfifo(path),
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
    "too large": lambda path: path.write_bytes(b" " * 11_000_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\xff"),
    "nothing": lambda path: path.touch(),
}
PARTS = ("config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such files")
@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", [*PARTS, "model.safetensors"])
def test_what_is_no_file_in_a_folder_is_one_sentence(kind, name, tmp_path):
    tiny.model().save_pretrained(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if name == "tokenizer.json":
        (tmp_path / "merges.txt").unlink()
    NO_FILES[kind](tmp_path / name)
    message = refusal(CLIP.from_pretrained, tmp_path)
    assert name in message or (name, kind) == ("merges.txt", "nothing") and "vocab.json" in message


LIARS = {
    "a million stages": {"image": {"widths": [8] * 10**6, "depths": [1] * 10**6}},
    "a million blocks": {"image": {"depths": [10**6, 1]}},
    "width of a giant": {"image": {"widths": [8, 40_000]}},
    "a million layers": {"text": {"depth": 10**6}},
    "text of a giant": {"text": {"width": 39_999}},
    "negative heads": {"text": {"heads": -3}},
    "heads that are no whole number": {"text": {"heads": 3.0}},
    "endless context": {"text": {"context": 10**13}},
}


@pytest.mark.parametrize("liar", LIARS)
def test_a_config_that_lies_is_refused_before_memory_is_taken(liar, tmp_path):
    """The hash on the card is right; who wrote the file wrote the card."""
    model = tiny.save("clip_resnet", tmp_path)
    path = tmp_path / "clip_resnet.safetensors"
    config = json.loads(json.dumps(model.config))
    for part, values in LIARS[liar].items():
        config[part] |= values
    save_file(load_file(path), path, {"config": json.dumps(config)})
    (tmp_path / "clip_resnet.json").write_text(json.dumps({"sha256": tensors.sha256(path)}))
    began, before = time.monotonic(), peak()
    message = refusal(checkpoints.load, "clip_resnet", torch.device("cpu"), tmp_path)
    assert "clip_resnet.safetensors" in message
    assert time.monotonic() - began < 20 and peak() - before < 0.3e9


def peak() -> float:
    """The most memory that this process has held, in bytes."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib if sys.platform == "darwin" else 1024 * kib


NAMES = ["", "clip", "a b/c", "a\nb/c", "-a/b", "a/b.git", "../x/y", "~/clip", "/no/where"]
NAMES += ["https://huggingface.co/openai/clip", "openai/clip/", "狐/狸", "\ud800/x", "\x00/x"]
NAMES += ["x" * 9999, "x/" + "y" * 9999, "C:\\models\\clip", None, 3, "x\ny.bin", "x/y.pt"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:24])
def test_what_is_neither_folder_nor_name_gets_one_sentence(name):
    message = refusal(CLIP.from_pretrained, name)
    assert "neither a folder on disk nor a hub name" in message or "pickled" in message


def test_a_hub_that_refuses_without_a_word_is_one_sentence(monkeypatch):
    class Refusing:
        def model_info(self, *_, **__):
            raise HFValidationError("")

    monkeypatch.setattr("huggingface_hub.HfApi", Refusing)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    message = refusal(CLIP.from_pretrained, "some/model")
    assert message.startswith("The hub does not give some/model (HFValidationError)")


def test_the_hub_offline_is_one_red_line_in_a_widget(clip, live):
    models = widgets.choice("Model", ["ours", "openai/no-such-clip"])

    def draw(name):
        model = clip if name == "ours" else CLIP.from_pretrained(name)
        return widgets.bars(["cat"], class_vectors(model, ["cat"])[0, :1].abs())

    answer = live([models], draw)
    good = answer.value
    models.value = "openai/no-such-clip"
    line = red_line(answer.value)
    assert line.startswith("openai/no-such-clip is not on disk and HF_HUB_OFFLINE is set; unset ")
    models.value = "ours"
    assert answer.value == good


class Hub(BaseHTTPRequestHandler):
    """A hub in bad order: what it answers depends on the name asked for."""

    done = threading.Event()

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        name = next(n for n in ANSWERS if f"some/{n}" in self.path)
        files = [{"rfilename": file} for file in LISTED] if name == "short" else []
        code, kind, headers = 200, "application/json", {}
        text = json.dumps({"id": f"some/{name}", "siblings": files})
        if name == "missing":
            code, headers["X-Error-Code"] = 404, "RepoNotFound"
        elif name == "private":
            code, headers["X-Error-Code"] = 401, "GatedRepo"
        elif name == "broken":
            code = 500
        elif name == "garbage":
            kind, text = "text/html", "<html>\n<body>please log in\n" * 50
        elif name == "slow":
            self.done.wait(30)
        elif name == "pickled" and "/discussions" in self.path:
            text = '{"discussions": [], "count": 0, "start": 0, "num": 0}'
        elif name == "short" and "/resolve/" in self.path:
            headers |= {"X-Repo-Commit": "0" * 40, "ETag": '"abc"'}
            text = "x" * 100
        content = text.encode()
        self.send_response(code)
        for key, value in (headers | {"Content-Type": kind}).items():
            self.send_header(key, value)
        cut = name == "short" and "/resolve/" in self.path
        self.send_header("Content-Length", str(len(content) * (10 if cut else 1)))
        self.end_headers()
        if body:
            self.wfile.write(content)  # and hangs up, however much was promised

    def log_message(self, *_):
        pass


ANSWERS = {
    "missing": "The hub does not give some/missing ",
    "private": "The hub does not give some/private ",
    "broken": "The hub does not give some/broken ",
    "garbage": "some/garbage",
    "slow": "some/slow is not on disk and the hub does not answer; connect",
    "pickled": "some/pickled has no model.safetensors on the hub; choose",
    "short": "some/short",
}
LISTED = ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors")
ASK = """
import json, sys
from utils.doors import hub
from utils.bricks.clip import CLIP
hub.SECONDS, said = 1, []
for name in sys.argv[1:]:
    try:
        CLIP.from_pretrained(name)
    except ValueError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def told(address: str, names: list[str], cache: Path) -> list[str]:
    """What from_pretrained answers in a process of its own whose hub is at `address`."""
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)}
    settings |= {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        env=os.environ | settings | {"HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_hub_in_bad_order_gets_one_sentence_and_leaves_no_model(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = [f"some/{name}" for name in ANSWERS]
    try:
        said = told(f"http://127.0.0.1:{server.server_port}", names, tmp_path)
    finally:
        Hub.done.set()
        server.shutdown()
        server.server_close()
    assert len(said) == len(ANSWERS)
    for message, wanted in zip(said, ANSWERS.values(), strict=True):
        assert wanted in message
        assert message.isprintable() and len(message) < 300 and REMEDY.search(message), message
    assert not list(tmp_path.rglob("model.safetensors"))


class Shelf(Hub):
    """A hub in good order: a folder of files, each of which it counts."""

    def answer(self, body: bool) -> None:
        path, headers = self.folder / self.path.rpartition("/")[2], {}
        if "/resolve/" in self.path:
            headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{path.name}"'}
            content = path.read_bytes() if path.exists() else b""
            self.asked.add(path.name)
        else:
            files = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            content = json.dumps({"id": "some/clip", "siblings": files}).encode()
        self.send_response(200 if content else 404)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.mark.slow
@pytest.mark.parametrize("mean", [None, 0.5])
def test_a_model_on_the_hub_is_fetched_with_all_that_is_read(mean, tmp_path):
    """Today's transformers writes tokenizer.json alone; a mean of its own is refused there, too."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    clip = tiny.model()
    clip.save_pretrained(folder)
    CLIPTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    (folder / "README.md").write_text("not needed")
    if mean:
        prepared(folder, image_mean=[mean] * 3)
    kind = type("Shelf", (Shelf,), {"folder": folder, "asked": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        said = told(address, ["some/clip"], tmp_path / "cache")
    finally:
        server.shutdown()
        server.server_close()
    assert kind.asked == set(LISTED)
    assert [("image_mean [0.5, 0.5, 0.5]" in line) for line in said] == ([True] if mean else [])
    assert told(address, ["some/clip"], tmp_path / "cache") == said  # now without the hub


@pytest.mark.slow
def test_a_hub_that_is_not_there_gets_one_sentence(tmp_path):
    said = told("http://127.0.0.1:9", ["openai/clip-vit-base-patch32"], tmp_path)
    assert said == [
        "openai/clip-vit-base-patch32 is not on disk and the hub does not answer; "
        "connect once to download it."
    ]


# Writing


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def half(real):
    """A `save_file` for which the disk is too small: half of the file is written."""

    def save(tensors, path, **settings):
        real(tensors, path, **settings)
        os.truncate(path, os.path.getsize(path) // 2)
        raise OSError(28, "No space left on device")

    return save


@pytest.mark.parametrize("write", ["save", "save_pretrained"])
def test_a_full_disk_leaves_the_old_files_and_no_others(write, tmp_path, monkeypatch):
    def go(model):
        if write == "save":
            return checkpoints.save(model, "clip", {}, tmp_path)
        return model.save_pretrained(tmp_path)

    go(tiny.model())
    before = contents(tmp_path)
    other = tiny.model()
    other.logit_scale.data += 1
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "save_file", half(tensors.save_file))
        message = refusal(go, other)
    assert message.startswith(".safetensors cannot be written", message.index(".safe"))
    assert "No space left on device" in message
    assert contents(tmp_path) == before
    go(other)
    assert contents(tmp_path) != before


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_is_no_folder_is_named(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    refusal(checkpoints.save, tiny.model(), "clip", {}, tmp_path / place)
    refusal(tiny.model().save_pretrained, tmp_path / place)
    assert contents(tmp_path) == {"file": b"mine"}


# Pickles


def test_nothing_here_reads_or_writes_a_pickle():
    words = r"\b(import (c?pickle|dill|joblib|shelve)|torch\.(load|save)\(|allow_pickle=True)"
    paths = [*ROOT.glob("utils/**/*.py"), *ROOT.glob("lessons/*.py")]
    assert len(paths) > 20
    guilty = [path.name for path in paths if re.search(words, path.read_text(encoding="utf-8"))]
    assert not guilty


@contextlib.contextmanager
def trapped(folder: Path):
    """Bytes that open a file when they are unpickled; fails if that happens."""

    class Trap:
        def __reduce__(self):
            return open, (str(folder / "ran"), "w")

    yield pickle.dumps(Trap())
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "merges.txt"])
def test_a_pickle_in_a_model_folder_is_refused_unread(name, tmp_path):
    model = tmp_path / "model"
    tiny.model().save_pretrained(model)
    with trapped(tmp_path) as content:
        if name == "pytorch_model.bin":
            (model / "model.safetensors").unlink()
        (model / name).write_bytes(content)
        assert name in refusal(CLIP.from_pretrained, model)
