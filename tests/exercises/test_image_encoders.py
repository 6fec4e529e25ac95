"""Lesson 01: answers that must be refused, each with its hint, and others that are right."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.exercises.helpers import define, names, solutions
from utils.bricks import attention, image_encoders
from utils.bricks.image_encoders import ViT
from utils.exercises.image_encoders import check_conv_size

LESSON = "01"
# what a learner has at hand at the end of the lesson
GIVEN = vars(attention) | vars(image_encoders)


def solution(name: str):
    return define(solutions(LESSON)[names(LESSON).index(name)], name, GIVEN)


def grid(x, p):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // p, p, w // p, p)


def patches_of_two(x, p):
    return solution("patchify")(x, 2)


def field(layers, grow):
    seen, jump = 1, 1
    for kernel, stride in layers:
        seen, jump = grow(seen, jump, kernel, stride)
    return seen


def vit(**change):
    """A count with one part wrong, to be changed by name."""
    part = {"patch": 3, "token": 1, "position": 1, "norms": 4, "mlp": 8, "out": 1}
    part |= {"bias": 9, "block_norms": 4} | change

    def count(size, patch, w, depth):
        n = (size // patch) ** 2
        outside = part["patch"] * patch**2 * w + part["token"] * w + part["norms"] * w
        outside += (n + 1) * w * part["position"]
        matrices = (3 + part["out"] + part["mlp"]) * w**2
        return outside + depth * (matrices + (part["bias"] + part["block_norms"]) * w)

    return count


def resized(classes="first", mixed=False, swap=False, mode="bilinear", **options):
    def resize_positions(positions, old, new):
        grid = positions[1:].reshape(1, -1, old, old) if mixed else grid_of(positions, old)
        grid = grid.transpose(2, 3) if swap else grid
        grid = F.interpolate(grid, size=(new, new), mode=mode, **options)
        parts = [positions[:1], grid.flatten(2)[0].T]
        return torch.cat(parts if classes == "first" else parts[::-1])

    return resize_positions


def grid_of(positions, old):
    return positions[1:].T.reshape(1, -1, old, old)


WRONG = [
    ("conv_size", lambda s, k, t, p: (s + 2 * p - k) // t, "before its first step"),
    ("conv_size", lambda s, k, t, p: (s + p - k) // t + 1, "on both sides"),
    ("conv_size", lambda s, k, t, p: (s + 2 * p - k) / t + 1, "round down with `//`"),
    ("conv_size", lambda s, k, t, p: math.ceil((s + 2 * p - k) / t) + 1, "sticks out"),
    (
        "conv_size",
        lambda s, k, t, p: (s - k) // t + 1,
        "padding makes the input larger",
    ),
    ("conv_size", lambda s, k, t, p: s + 2 * p - k + 1, "stride skips positions"),
    ("conv_size", lambda s, k, t, p: (s, s), "one whole number"),
    (
        "receptive_field",
        lambda layers: sum(k for k, _ in layers),
        "adds kernel − 1, not kernel",
    ),
    (
        "receptive_field",
        lambda layers: math.prod(k for k, _ in layers),
        "kernels do not multiply",
    ),
    (
        "receptive_field",
        lambda layers: sum(k - 1 for k, _ in layers) + 1,
        "multiply kernel − 1 by the product",
    ),
    (
        "receptive_field",
        lambda layers: field(layers, lambda f, j, k, s: (f + (k - 1) * j * s, j * s)),
        "only for the layers after it",
    ),
    (
        "receptive_field",
        lambda layers: field(layers[::-1], lambda f, j, k, s: (f + (k - 1) * j, j * s)),
        "not those after",
    ),
    (
        "receptive_field",
        lambda layers: (
            1 + sum((k - 1) * s for (k, _), (_, s) in zip(layers, [(1, 1), *layers], strict=False))
        ),
        "not only the last one",
    ),
    ("patchify", lambda x, p: x.reshape(len(x), -1, x.shape[1] * p * p), "lie in a row"),
    (
        "patchify",
        lambda x, p: grid(x, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2),
        "channels come last",
    ),
    (
        "patchify",
        lambda x, p: grid(x, p).permute(0, 4, 2, 1, 3, 5).flatten(3).flatten(1, 2),
        "run down the columns",
    ),
    (
        "patchify",
        lambda x, p: grid(x, p).permute(0, 2, 4, 1, 5, 3).flatten(3).flatten(1, 2),
        "F.unfold puts them",
    ),
    ("patchify", lambda x, p: F.unfold(x, p, stride=p), "pictures, patches, numbers"),
    ("patchify", patches_of_two, "for any p"),
    ("patchify", lambda x, p: F.unfold(x, p, stride=p).mT, "you used unfold"),
    (
        "patchify",
        lambda x, p: torch.stack(
            [
                x[:, :, i : i + p, j : j + p].flatten(1)
                for i in range(0, x.shape[2], p)
                for j in range(0, x.shape[3], p)
            ],
            1,
        ),
        "you used __getitem__, stack",
    ),  # fmt: skip
    (
        "patchify",
        lambda x, p: grid(x, p).permute(0, 2, 4, 1, 3, 5).reshape(len(x), -1, 3 * p * p),
        "any channels",
    ),
    ("patchify", lambda x, p: grid(x, p).permute(0, 2, 4, 1, 3, 5).tolist(), "not a list"),
    ("count_vit", vit(token=0), "one vector of the width is missing"),
    ("count_vit", vit(position=0), "positions are learned too"),
    ("count_vit", vit(norms=0), "norm_pre and norm_post"),
    ("count_vit", vit(norms=2), "one LayerNorm is missing"),
    ("count_vit", vit(bias=0), "9 widths in all"),
    ("count_vit", vit(block_norms=0), "each block has two LayerNorms"),
    ("count_vit", vit(bias=0, block_norms=0), "biases and norms in the blocks"),
    ("count_vit", vit(mlp=0), "each block has an MLP"),
    ("count_vit", vit(out=0), "width × width layer, `out`"),
    ("count_vit", vit(patch=1), "three channels"),
    ("count_vit", vit(token=2), "no bias"),
    ("resize_positions", resized(classes="last"), "stays as it is"),
    ("resize_positions", resized(mixed=True), "transpose first"),
    ("resize_positions", resized(swap=True), "changed places"),
    ("resize_positions", resized(mode="nearest"), "nearest old ones"),
    ("resize_positions", resized(align_corners=True), "squares, not points"),
    ("resize_positions", resized(mode="bicubic"), "is another"),
    (
        "resize_positions",
        lambda p, old, new: F.interpolate(p.T[None], size=1 + new**2, mode="linear")[0].T,
        "resized with the rest",
    ),
    ("resize_positions", lambda p, old, new: resized()(p, old, new)[1:], "not (16, 1)"),
    ("resize_positions", lambda *a: resized()(*a).detach(), "do not detach"),
    ("resize_positions", lambda *a: resized()(*a).tolist(), "not a list"),
]


RIGHT = [
    ("conv_size", lambda *a: torch.tensor(solution("conv_size")(*a))),
    ("conv_size", lambda s, k, t, p: math.floor((s + 2 * p - k) / t + 1)),
    ("patchify", lambda x, p: grid(x, p).movedim(1, 3).transpose(2, 4).flatten(3).flatten(1, 2)),
    ("resize_positions", resized()),
    ("resize_positions", resized(align_corners=False)),
]


def test_count_is_the_bricks():
    tower = ViT(64, 16, width=48, depth=2, heads=3)
    assert solution("count_vit")(64, 16, 48, 2) == sum(p.numel() for p in tower.parameters())


@pytest.mark.parametrize("layers", [[(3, 1), (3, 1)], [(4, 4), (3, 1)], [(5, 2), (3, 2)]])
def test_field_is_what_the_gradient_says(layers):
    line = torch.zeros(1, 1, 99, requires_grad=True)
    x = line
    for kernel, stride in layers:
        x = F.conv1d(x, torch.ones(1, 1, kernel), stride=stride)
    x[0, 0, x.shape[-1] // 2].backward()
    assert solution("receptive_field")(layers) == int((line.grad > 0).sum())


def test_the_verdict_is_printed(capsys):
    check_conv_size(solution("conv_size"))
    assert capsys.readouterr().out.startswith("✓ conv_size: right")
