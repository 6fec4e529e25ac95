"""What a learner may type, at every door: the right value, or a ValueError of one sentence.

A row is a kind of input at a door. A kind that is served gives what the plain tensor or list
gives; any other gets one sentence that names the thing, says what was seen and what to do.
"""

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests import tiny
from tests.helpers import refusal
from utils import data, device, pictures, widgets
from utils.bricks import (
    clip_guidance,
    dalle,
    text_encoders,
    unclip,
    vq_vae,
    vqgan,
    vqgan_clip,
    zero_shot,
)
from utils.bricks.clip import contrastive_loss, preprocess
from utils.bricks.dvae import gumbel_softmax


@cache
def model(name: str):
    return tiny.model(name).eval()


def values(answer) -> list[Tensor]:
    """An answer as a list of tensors."""
    if isinstance(answer, Tensor):
        return [answer.detach().float()]
    if isinstance(answer, list | tuple) and answer and isinstance(answer[0], Tensor):
        return [part.detach().float() for part in answer]
    return [torch.tensor(answer).float()]


def judge(door: Callable, value, plain) -> None:
    """plain: what gives the right answer; None where the value must be refused."""
    if plain is None:
        message = refusal(door, value() if callable(value) else value)
        assert "Error" not in message and "object at" not in message, message
        return
    found = values(door(value() if callable(value) else value))
    wanted = values(door(plain))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def table(doors: dict, kinds: dict, but: dict | None = None) -> list:
    """A row for each kind at each door. but: {(door, kind): plain}, where a door differs."""
    rows = []
    for (door, call), (kind, (value, plain)) in itertools.product(doors.items(), kinds.items()):
        plain = (but or {}).get((door, kind), plain)
        rows.append(pytest.param(call, value, plain, id=f"{door}-{kind}"))
    return rows


# ---------------------------------------------------------------- pictures

BYTES = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
TWO = BYTES / 255
ARRAYS = BYTES.permute(0, 2, 3, 1).numpy()  # as other libraries have them
PIL = [Image.fromarray(array) for array in ARRAYS]


def with_value(value: float) -> Tensor:
    changed = TWO.clone()
    changed[1, 2, 3, 4] = value
    return changed


PICTURES = {
    "a float64 tensor": (TWO.double(), TWO),
    "a bfloat16 tensor": (TWO.bfloat16(), TWO.bfloat16().float()),
    "a float16 tensor": (TWO.half(), TWO.half().float()),
    "a tensor with a gradient": (TWO.clone().requires_grad_(), TWO),
    "a tensor in channels-last order": (TWO.contiguous(memory_format=torch.channels_last), TWO),
    "a list of tensors": (list(TWO), TWO),
    "a list of batches": ([TWO[:1], TWO[1:]], TWO),
    "a tuple": (tuple(TWO), TWO),
    "a generator": (lambda: (picture for picture in TWO), TWO),
    "an array": (TWO.numpy(), TWO),
    "an array of float64": (TWO.double().numpy(), TWO),
    "an array of uint8, channels last": (ARRAYS, TWO),
    "one array of uint8, channels last": (ARRAYS[0], TWO[:1]),
    "a picture of PIL": (PIL[0], TWO[:1]),
    "pictures of PIL": (PIL, TWO),
    "a picture of PIL and an array": ([PIL[0], ARRAYS[1]], TWO),
    "one tensor": (TWO[0], None),
    "grey pictures": (TWO[:, :1], None),
    "channels last": (TWO.permute(0, 2, 3, 1), None),
    "none": (TWO[:0], None),
    "no height": (TWO[:, :, :0], None),
    "an array of no height": (ARRAYS[:, :0], None),
    "0 to 255": (TWO * 255, None),
    "a nan": (with_value(float("nan")), None),
    "an infinity": (with_value(float("inf")), None),
    "whole numbers": (BYTES.long(), None),
    "truth values": (BYTES > 9, None),
    "complex numbers": (TWO * 1j, None),
    "an array of texts": (np.array(["cat"]), None),
    "an array of objects": (np.array([None]), None),
    "None": (None, None),
    "a number": (3, None),
    "a text": ("cat.png", None),
    "bytes": (b"cat", None),
    "a dict": ({"a": TWO}, None),
    "an empty list": ([], None),
    "a list of None": ([None], None),
    "a list of numbers": ([0.5, 0.5], None),
    "pictures of two sizes": ([TWO[0], TWO[1, :, :16]], None),
    "an endless generator": (lambda: itertools.repeat(0.5), None),
    "a function": (lambda: print, None),
}


def found_among(shown):
    count = len(shown) if isinstance(shown, Tensor) else 2
    labels = ["cat", "dog"][:count]
    return dalle.found_among(model("clip"), shown, labels, ["fox", "owl"], among=2).float()


PICTURE_DOORS = {
    "encode_image": lambda x: model("clip").encode_image(x),
    "encode_image of a ResNet": lambda x: model("clip_resnet").encode_image(x),
    "preprocess": lambda x: preprocess(x, 24),
    "CLIP": lambda x: model("clip")(x, ["cat", "dog"]),
    "image_vectors": lambda x: zero_shot.image_vectors(model("clip"), x),
    "classify": lambda x: zero_shot.classify(model("clip"), x, ["cat", "dog"]),
    "rerank": lambda x: dalle.rerank(model("clip"), x, "cat").float(),
    "score": lambda x: vqgan_clip.score(model("clip_resnet"), x, "cat"),
    "VQVAE.encode": lambda x: model("vq_vae").latents(x),
    "VQVAE": lambda x: model("vq_vae")(x)[0],
    "DVAE.encode": lambda x: model("dvae").latents(x),
    "perceptual distance": lambda x: vqgan.PerceptualDistance(model("clip_resnet")).features(x),
    "KLAutoencoder.encode": lambda x: model("kl").encode(x),
    "LatentDiffusion.encode": lambda x: model("latent_diffusion").encode(x),
    "Prior.encode": lambda x: model("prior").encode(x),
    "variations": lambda x: unclip.variations(model("unclip"), x, steps=2),
    "noise_of": lambda x: unclip.noise_of(model("unclip"), x, steps=2),
}
BYTE_DOORS = {"image_vectors", "classify", "rerank"}
NOISY = {"encode_image", "encode_image of a ResNet", "preprocess", "CLIP", "perceptual distance"}


@pytest.mark.parametrize("door, value, plain", table(PICTURE_DOORS, PICTURES))
def test_pictures(door, value, plain):
    judge(door, value, plain)


@pytest.mark.parametrize("name", PICTURE_DOORS)
def test_a_tensor_of_uint8_is_read_where_many_pictures_come(name):
    judge(PICTURE_DOORS[name], BYTES, TWO if name in BYTE_DOORS else None)


@pytest.mark.parametrize("name", PICTURE_DOORS)
def test_pictures_from_minus_1_to_1_are_noticed_where_no_noise_is_added(name):
    if name in NOISY:
        assert torch.isfinite(values(PICTURE_DOORS[name](2 * TWO - 1))[0]).all()
    else:
        refusal(PICTURE_DOORS[name], 2 * TWO - 1)


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1), (1, 200_000), (3, 20_000), (1, 1)])
@pytest.mark.parametrize("name", ["encode_image", "preprocess", "classify"])
def test_a_line_of_pixels_costs_no_more_than_a_picture(name, shape):
    began = device.time.process_time()
    answer = PICTURE_DOORS[name](torch.rand(1, 3, *shape))
    assert answer.isfinite().all() and device.time.process_time() - began < 2


@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (5, 61), (10, 95), (16, 1000)])
def test_what_is_cut_off_before_would_be_cut_off_after(shape):
    """Up to the roundings of the size and of where half a pixel falls."""
    ramp = torch.linspace(0, 1, max(shape)).expand(1, 3, min(shape), -1)
    ramp = ramp if shape[0] < shape[1] else ramp.transpose(2, 3)
    ratio = 24 / min(shape)
    whole = torch.nn.functional.interpolate(
        ramp, [round(side * ratio) for side in shape], mode="bicubic", antialias=True
    )
    top, left = ((side - 24) // 2 for side in whole.shape[2:])
    wanted = preprocess(whole[:, :, top : top + 24, left : left + 24].clamp(0, 1), 24)
    step = 1 / max(shape) / 0.26  # of one pixel, in units of the deviation
    assert (preprocess(ramp, 24) - wanted).abs().max() < step


# ---------------------------------------------------------------- texts

WORDS = ["cat", "red fox"]
TEXTS = {
    "a tuple": (tuple(WORDS), WORDS),
    "a generator": (lambda: (word for word in WORDS), WORDS),
    "an array": (np.array(WORDS), WORDS),
    "an array of objects": (np.array(WORDS, dtype=object), WORDS),
    "the keys of a dict": (dict.fromkeys(WORDS).keys(), WORDS),
    "a map": (lambda: map(str, WORDS), WORDS),
    "a text": ("cat", None),
    "bytes": (b"cat", None),
    "None": (None, None),
    "a number": (3, None),
    "a set": (set(WORDS), None),
    "an empty list": ([], None),
    "a list with None": (["cat", None], None),
    "a list with a number": (["cat", 1], None),
    "lists in a list": ([["cat"]], None),
    "bytes in a list": ([b"cat"], None),
    "pairs": ({"cat": 1}.items(), None),
    "a tensor": (torch.zeros(2), None),
    "an array of numbers": (np.zeros(2), None),
    "an endless generator": (lambda: itertools.repeat("cat"), None),
    "a function": (lambda: print, None),
}


def last(steps):
    *_, result = steps
    return result


def loop(prompts, **how):
    how = {"guide": model("clip_resnet"), "vqgan": model("vqgan"), "cuts": 2, "steps": 1} | how
    return last(vqgan_clip.optimise(prompts, least=8, **how))


def led(prompts, **how):
    how = {"clip": model("clip_resnet"), "model": model("diffusion"), "cuts": 2, "steps": 2} | how
    return last(clip_guidance.guide(prompts, **how))


TEXT_DOORS = {
    "tokenizer": lambda x: model("clip").tokenizer(x),
    "encode_text": lambda x: model("clip").encode_text(x),
    "CLIP": lambda x: model("clip")(TWO, x),
    "class_vectors": lambda x: zero_shot.class_vectors(model("clip"), x),
    "classify": lambda x: zero_shot.classify(model("clip"), TWO, x),
    "found_among": lambda x: dalle.found_among(model("clip"), TWO, x, ["owl"], among=2).float(),
    "DALLE.encode_text": lambda x: model("dalle").encode_text(x),
    "generate": lambda x: model("dalle").generate(x, seed=[3, 4]),
    "optimise": loop,
    "guide": led,
    "imagine": lambda x: unclip.imagine(model("prior"), x, steps=2),
}
for name in ("diffusion", "latent_diffusion"):
    TEXT_DOORS[name] = lambda x, name=name: model(name).generate(x, seed=[3, 4], steps=2)
# without a prompt they draw, too: as many as there are seeds
SILENT = {"diffusion-None", "latent_diffusion-None"}


def empty(door: str) -> bool:
    """Doors that pass an empty list on: a table of no rows."""
    return door in ("tokenizer", "DALLE.encode_text")


TEXT_ROWS = table(
    TEXT_DOORS, TEXTS, {(door, "an empty list"): [] for door in filter(empty, TEXT_DOORS)}
)


@pytest.mark.parametrize(
    "door, value, plain", [row for row in TEXT_ROWS if row.id not in SILENT]
)
def test_texts(door, value, plain):
    judge(door, value, plain)


@pytest.mark.parametrize("value", [None, 3, b"cat", ["cat"], np.zeros(2), print], ids=ascii)
@pytest.mark.parametrize(
    "door",
    [
        lambda x: model("clip").tokenizer.encode(x),
        lambda x: dalle.rerank(model("clip"), TWO, x),
        lambda x: vqgan_clip.weighted_parts(x),
        lambda x: vqgan_clip.score(model("clip_resnet"), TWO, x),
        widgets.prompts,
        widgets.labels,
    ],
    ids=["encode", "rerank", "weighted_parts", "score", "prompts", "labels"],
)
def test_one_text(door, value):
    refusal(door, value)


def test_many_labels_with_many_templates_take_the_memory_of_few(monkeypatch):
    """The text tower never sees more than GROUP rows at once."""
    clip, rows = model("clip"), []
    hook = clip.text_tower.register_forward_pre_hook(lambda _, ids: rows.append(len(ids[0])))
    labels, templates = [f"thing {i}" for i in range(60)], [f"{i} {{}}" for i in range(20)]
    found = zero_shot.class_vectors(clip, labels, templates)
    hook.remove()
    assert sum(rows) == 1200 and max(rows) <= text_encoders.GROUP
    one = zero_shot.class_vectors(clip, labels[7:8], templates)
    torch.testing.assert_close(found[7:8], one, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- numbers

SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
FLOATS = {
    "an array": (SCORES.numpy(), SCORES),
    "an array of float64": (SCORES.double().numpy(), SCORES),
    "lists": (SCORES.tolist(), SCORES),
    "a list of tensors": (list(SCORES), SCORES),
    "a list of arrays": (list(SCORES.numpy()), SCORES),
    "a generator": (lambda: (row for row in SCORES), SCORES),
    "None": (None, None),
    "a number": (0.5, None),
    "a text": ("0.5", None),
    "a row": (SCORES[0], None),
    "another axis": (SCORES[None], None),
    "a nan": (SCORES.masked_fill(SCORES > 0.6, float("nan")), None),
    "lists of two lengths": ([[0.1, 0.2], [0.3]], None),
    "a list with None": ([[0.1, None]], None),
    "texts": ([["0.1"]], None),
    "a dict": ({0: 0.1}, None),
    "complex numbers": (SCORES * 1j, None),
    "a picture of PIL": (PIL[0], None),
}
CLASSES = torch.tensor([1, 2])
UNITS = torch.nn.functional.normalize(torch.ones(4, 3).tril().add(0.1), dim=1)
FLOAT_DOORS = {
    "top_k_accuracy": lambda x: zero_shot.top_k_accuracy(x, CLASSES),
    "nearest_neighbours": lambda x: zero_shot.nearest_neighbours(x, UNITS, [0, 1, 1, 0], 2, 2),
    "linear_probe": lambda x: zero_shot.linear_probe(x, [0, 1], 2, steps=5),
    "probe_scores": lambda x: zero_shot.probe_scores(x, torch.ones(2, 4)),
    "retrieve": lambda x: zero_shot.retrieve(x, UNITS, 2),
    "gallery": lambda x: zero_shot.retrieve(UNITS, x, 2),
    "contrastive_loss": lambda x: contrastive_loss(x, SCORES, 2.0),
    "choose": lambda x: vqgan.choose(x, [0.1, 0.9]),
    "slerp": lambda x: unclip.slerp(x, SCORES.flip(0), 0.5),
}


@pytest.mark.parametrize("door, value, plain", table(FLOAT_DOORS, FLOATS))
def test_numbers(door, value, plain):
    judge(door, value, plain)


@pytest.mark.parametrize("value, plain", FLOATS.values(), ids=FLOATS)
def test_numbers_of_psnr(value, plain):
    """Pictures, so an axis more."""

    def door(x):
        return vq_vae.psnr(x[None, None] if isinstance(x, Tensor | np.ndarray) else x, TWO)

    refusal(door, value() if callable(value) else value)


WHOLE = {
    "an array": (CLASSES.numpy(), CLASSES),
    "an array of int32": (CLASSES.numpy().astype(np.int32), CLASSES),
    "an int32 tensor": (CLASSES.int(), CLASSES),
    "a list": ([1, 2], CLASSES),
    "a range": (range(1, 3), CLASSES),
    "a list of NumPy's numbers": (list(CLASSES.numpy()), CLASSES),
    "a generator": (lambda: iter([1, 2]), CLASSES),
    "None": (None, None),
    "a number": (1, None),
    "floats": (CLASSES.float(), None),
    "a list of floats": ([1.0, 2.0], None),
    "truth values": (CLASSES > 1, None),
    "texts": (["cat", "dog"], None),
    "another axis": (CLASSES[None], None),
    "a class too many": (torch.tensor([1, 3]), None),
    "a negative class": (torch.tensor([-1, 2]), None),
    "one for too many": (torch.tensor([1, 2, 2]), None),
    "none": (torch.tensor([], dtype=torch.long), None),
}
WHOLE_DOORS = {
    "top_k_accuracy": lambda x: zero_shot.top_k_accuracy(SCORES, x),
    "nearest_neighbours": lambda x: zero_shot.nearest_neighbours(SCORES, SCORES, x, 3, 1),
    "linear_probe": lambda x: zero_shot.linear_probe(SCORES, x, 3, steps=5),
}


@pytest.mark.parametrize("door, value, plain", table(WHOLE_DOORS, WHOLE))
def test_whole_numbers(door, value, plain):
    judge(door, value, plain)


CODES = torch.arange(32).view(2, 4, 4)
CODE_KINDS = {
    "an array": (CODES.numpy(), CODES),
    "an array of uint8": (CODES.numpy().astype(np.uint8), CODES),
    "an int32 tensor": (CODES.int(), CODES),
    "lists": (CODES.tolist(), CODES),
    "a list of tensors": (list(CODES), CODES),
    "a generator": (lambda: iter(CODES), CODES),
    "None": (None, None),
    "a number": (5, None),
    "a text": ("5", None),
    "floats": (CODES.float(), None),
    "truth values": (CODES > 5, None),
    "one grid": (CODES[0], None),
    "a code too many": (CODES + 1, None),
    "a negative code": (CODES - 1, None),
    "pictures": (TWO, None),
    "lists of two lengths": ([[[1, 2], [3]]], None),
}
CODE_DOORS = {
    name: lambda x, name=name: model(name).decode(x) for name in ("vq_vae", "dvae", "vqgan")
}


@pytest.mark.parametrize("door, value, plain", table(CODE_DOORS, CODE_KINDS))
def test_codes(door, value, plain):
    judge(door, value, plain)


# ---------------------------------------------------------------- one number

KS = {
    "NumPy's": (np.int64(2), 2),
    "a tensor": (torch.tensor(2), 2),
    "None": (None, None),
    "a fraction": (1.5, None),
    "2.0": (2.0, None),
    "a truth value": (True, None),
    "a text": ("2", None),
    "a list": ([2, 3], None),
    "0": (0, None),
    "below 0": (-1, None),
    "nan": (float("nan"), None),
}
K_DOORS = {
    "top_k_accuracy": lambda k: zero_shot.top_k_accuracy(SCORES, CLASSES, k),
    "nearest_neighbours": lambda k: zero_shot.nearest_neighbours(SCORES, SCORES, [0, 1], 2, k),
    "retrieve": lambda k: zero_shot.retrieve(UNITS, UNITS, k),
    "keep_top_k": lambda k: vqgan.keep_top_k(SCORES, k).softmax(-1),
    "preprocess": lambda k: preprocess(TWO, k),
    "image_vectors": lambda k: zero_shot.image_vectors(model("clip"), TWO, k),
    "steps": lambda k: loop(["cat"], steps=k),
    "candidates": lambda k: unclip.imagine(model("prior"), ["cat"], candidates=k, steps=2),
    "batch": lambda k: data.batch(tiny.pairs(), k, 0, 0, torch.device("cpu"))[0],
    "set_aside": lambda k: data.set_aside(four_styles(), k)[1].pictures,
}


def four_styles() -> data.Pairs:
    pairs = tiny.pairs()
    columns = {"concept": [str(i // 4) for i in range(24)], "style": list(data.STYLES) * 6}
    return data.Pairs(pairs.pictures, pairs.table | columns)


@pytest.mark.parametrize("door, value, plain", table(K_DOORS, KS, {("set_aside", "0"): 0}))
def test_a_count(door, value, plain):
    judge(door, value, plain)


def test_more_than_there_are_is_served_where_it_means_all():
    assert zero_shot.top_k_accuracy(SCORES, CLASSES, 99) == 1
    assert zero_shot.retrieve(UNITS, UNITS, 99).shape == (4, 4)
    assert zero_shot.nearest_neighbours(SCORES, SCORES, [0, 1], 2, 99).shape == (2, 2)
    assert "k is 99; choose from 1 to 3" in refusal(vqgan.keep_top_k, SCORES, 99)


SEEDS = {
    "NumPy's": (np.int64(7), 7),
    "a tensor": (torch.tensor(7), 7),
    "a very large one": (2**80 + 7, 2**80 + 7),
    "below 0": (-7, -7),
    "None": (None, None),
    "a fraction": (0.5, None),
    "a text": ("7", None),
    "nan": (float("nan"), None),
}


def drawn(generator: torch.Generator) -> Tensor:
    return torch.rand(3, generator=generator)


SEED_DOORS = {
    "device.seed": lambda x: drawn(device.seed(x)),
    "device.generator": lambda x: drawn(device.generator(x)),
    "generate": lambda x: model("dalle").generate(["cat"], seed=x),
    "optimise": lambda x: loop(["cat"], seed=x),
    "batch": lambda x: data.batch(tiny.pairs(), 2, x, 0, torch.device("cpu"))[0],
}


@pytest.mark.parametrize("door, value, plain", table(SEED_DOORS, SEEDS))
def test_a_seed(door, value, plain):
    judge(door, value, plain)


SEVERAL_SEEDS = {
    "a range": (range(3, 5), [3, 4]),
    "a tensor": (torch.tensor([3, 4]), [3, 4]),
    "an array": (np.array([3, 4]), [3, 4]),
    "a generator": (lambda: iter([3, 4]), [3, 4]),
    "one too few": ([3], None),
    "a list with None": ([3, None], None),
    "fractions": ([0.1, 0.2], None),
    "a text": ("34", None),
}
SEVERAL_SEED_DOORS = {
    "generate": lambda x: model("dalle").generate(WORDS, seed=x),
    "optimise": lambda x: loop(WORDS, seed=x),
}


@pytest.mark.parametrize("door, value, plain", table(SEVERAL_SEED_DOORS, SEVERAL_SEEDS))
def test_a_seed_for_each(door, value, plain):
    judge(door, value, plain)


FRACTIONS = {
    "a whole number": (1, 1.0),
    "NumPy's": (np.float64(0.5), 0.5),
    "a tensor": (torch.tensor(0.5), 0.5),
    "None": (None, None),
    "a text": ("0.5", None),
    "a list": ([0.5, 0.6], None),
    "nan": (float("nan"), None),
    "an infinity": (float("inf"), None),
}
FRACTION_DOORS = {
    "temperature": lambda x: model("dalle").generate(["cat"], temperature=x),
    "guidance": lambda x: model("dalle").generate(["cat"], guidance=x),
    "top_p": lambda x: model("dalle").generate(["cat"], top_p=x),
    "keep_nucleus": lambda x: vqgan.keep_nucleus(SCORES, x).softmax(-1),
    "gumbel_softmax": lambda x: [device.seed(0), gumbel_softmax(SCORES, x)][1],
    "pull": lambda x: loop(["cat"], start=TWO[0], pull=x),
    "lr": lambda x: loop(["cat"], lr=x),
}


@pytest.mark.parametrize("door, value, plain", table(FRACTION_DOORS, FRACTIONS))
def test_a_number(door, value, plain):
    judge(door, value, plain)


STARTS = {
    "a picture of PIL": (PIL[0], TWO[:1]),
    "an array of uint8, channels last": (ARRAYS[0], TWO[:1]),
    "a list of tensors": ([TWO[0]], TWO[:1]),
    "an array": (TWO[:1].numpy(), TWO[:1]),
    "one tensor": (TWO[0], TWO[:1]),
    "a text": ("cat.png", None),
    "a number": (3, None),
    "a nan": (with_value(float("nan"))[1:], None),
    "0 to 255": (TWO[:1] * 255, None),
    "a tensor of uint8": (BYTES[:1], None),
    "two for one prompt": (TWO, None),
}


@pytest.mark.parametrize("value, plain", STARTS.values(), ids=STARTS)
def test_a_picture_to_start_from(value, plain):
    judge(lambda x: loop(["cat"], start=x), value, plain)


# ---------------------------------------------------------------- data

ROWS = {
    "a range": (range(1, 3), [1, 2]),
    "a tensor": (torch.tensor([1, 2]), [1, 2]),
    "an array": (np.array([1, 2]), [1, 2]),
    "a generator": (lambda: iter([1, 2]), [1, 2]),
    "a mask": (torch.arange(24) // 2 == 1, [2, 3]),
    "a mask as an array": (np.arange(24) // 2 == 1, [2, 3]),
    "a mask as a list": ([i // 2 == 1 for i in range(24)], [2, 3]),
    "from the end": ([-1], [23]),
    "none": ([], []),
    "too short a mask": ([True, False], None),
    "beyond the end": ([24], None),
    "before the beginning": ([-25], None),
    "fractions": ([0.5], None),
    "None": (None, None),
    "a number": (3, None),
    "a text": ("3", None),
    "a list of None": ([None], None),
}


@pytest.mark.parametrize("value, plain", ROWS.values(), ids=ROWS)
def test_rows_of_pairs(value, plain):
    judge(lambda x: [float(r["concept"]) for r in all_rows(tiny.pairs().take(x))], value, plain)


def all_rows(pairs: data.Pairs) -> list[dict]:
    assert len(pairs.pictures) == len(pairs.table["concept"])
    return [pairs.row(i) for i in range(len(pairs))]


@pytest.mark.parametrize("split", ["Train", "", None, 3, ["train"], b"train"], ids=ascii)
def test_a_split_that_is_not_there(split):
    assert "choose one of train, unseen" in refusal(data.load_emoji, split)


@pytest.mark.parametrize("source", ["", "cats", None, 3, [], b"x", "/no/where", "\0", "a" * 5000])
def test_a_source_of_pairs_that_is_not_there(source):
    refusal(data.load_pairs, source)


@pytest.mark.parametrize("languages", ["de", [], ["en", "de"], [None], [3]], ids=ascii)
def test_a_language_that_is_not_there(languages):
    def door(x):
        return data.batch(tiny.pairs(), 2, 0, 0, torch.device("cpu"), x)

    assert "choose from en, zh" in refusal(door, languages)


def test_one_language_need_not_be_a_list():
    _, captions = data.batch(tiny.pairs(), 9, 0, 0, torch.device("cpu"), "zh")
    assert all("fox" not in caption for caption in captions)


def test_a_column_that_is_not_there():
    assert "there is no column 'colour'" in refusal(lambda: tiny.pairs().where(colour="red"))


def test_no_pairs_are_nothing_to_draw_from():
    nothing = tiny.pairs().take([])
    refusal(data.batch, nothing, 2, 0, 0)


AUGMENTED = {kind: row for kind, row in PICTURES.items() if kind != "a list of batches"}


@pytest.mark.parametrize("value, plain", AUGMENTED.values(), ids=AUGMENTED)
def test_pictures_to_augment(value, plain):
    judge(lambda x: data.augment(x, device.generator(0)), value, plain)


# ---------------------------------------------------------------- files and pages

SOURCES = [None, 3, 10**12, 0.5, [1], {"a": 1}, TWO[0], np.zeros((4, 4, 3)), b"", "", "\0", print]


@pytest.mark.parametrize("source", SOURCES, ids=lambda x: type(x).__name__)
def test_what_is_no_picture_to_read(source):
    refusal(pictures.read, source)


NOT_SHOWN = [None, 3, "cat", TWO, BYTES[0, 0], TWO[0, :1], with_value(torch.nan)[1]]


@pytest.mark.parametrize("value", NOT_SHOWN, ids=lambda x: type(x).__name__)
def test_what_is_no_picture_to_show(value):
    refusal(widgets.thumbnail, value)
