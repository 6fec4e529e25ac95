"""Checks of the exercises in lesson 01."""

import numbers

import torch
import torch.nn.functional as F

from utils.exercises import close, exercise, expect, tried


def _number(value, what: str) -> float:
    """A learner's whole number, also as a 0-d tensor or a float like 8.0."""
    value = tried(value)
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    expect(
        isinstance(value, numbers.Real) and not isinstance(value, bool),
        f"you returned a {type(value).__name__}; {what} is one whole number.",
    )
    return value


@exercise("conv_size")
def check_conv_size(conv_size):
    """conv_size(size, kernel, stride, padding) -> size of a convolution's output."""
    for size, kernel, stride, padding in [
        (5, 3, 1, 0),
        (64, 3, 1, 1),
        (64, 8, 8, 0),
        (224, 7, 2, 3),
        (10, 3, 2, 0),
        (9, 4, 3, 2),
    ]:
        seen = _number(conv_size(size, kernel, stride, padding), "a size")
        line = torch.zeros(1, 1, size)
        weight = torch.zeros(1, 1, kernel)
        right = F.conv1d(line, weight, stride=stride, padding=padding).shape[-1]
        call = f"conv_size({size}, {kernel}, {stride}, {padding})"
        expect(
            seen == int(seen),
            f"{call} gave {seen:.2f}, and half a position does not exist; a last "
            "window that does not fit is dropped, so round down with `//`.",
        )
        room = size + 2 * padding - kernel
        hints = {
            room // stride: "the window also fits before its first step: + 1",
            (size + padding - kernel) // stride + 1: "padding is added on both sides",
            -(-room // stride) + 1: "a window that sticks out is dropped: round down",
            (size - kernel) // stride + 1: "the padding makes the input larger",
            room + 1: "the stride skips positions: divide by it",
        }
        hint = hints.get(seen, "count the places where the window can start")
        expect(seen == right, f"{call} gave {seen:g}, it is {right}; {hint}.")
    return "right, and equal to torch's convolution for six settings"


@exercise("receptive_field")
def check_receptive_field(receptive_field):
    """receptive_field([(kernel, stride), ...]) -> pixels one output sees in a row."""
    for layers in [
        [(3, 1)],
        [(3, 1), (3, 1)],
        [(3, 1), (3, 1), (3, 1)],
        [(5, 2), (3, 1), (3, 2)],
        [(4, 4), (3, 1), (3, 1)],
        [(3, 1), (2, 2), (3, 1), (2, 2), (3, 1)],
    ]:
        right, early = _field(layers), _field(layers, early=True)
        seen = _number(receptive_field(list(layers)), "a receptive field")
        product = 1
        for kernel, _ in layers:
            product *= kernel
        hints = {
            sum(k for k, _ in layers): (
                "windows overlap: a layer adds kernel − 1, not kernel"
            ),
            product: "windows overlap, so the kernels do not multiply",
            sum(k - 1 for k, _ in layers) + 1: (
                "after a stride neighbours lie further apart: multiply kernel − 1 by "
                "the product of the strides before it"
            ),
            early: "a layer's own stride counts only for the layers after it",
            _field(layers[::-1]): "the strides before a layer count, not those after",
            1
            + sum(
                (kernel - 1) * (layers[i - 1][1] if i else 1)
                for i, (kernel, _) in enumerate(layers)
            ): "all strides before a layer multiply, not only the last one",
        }
        hint = hints.get(seen, "begin with 1 pixel; each layer adds its part")
        expect(seen == right, f"for {layers} you gave {seen:g}, it is {right}; {hint}.")
    return "right; with strides, small windows soon see far"


def _field(layers, early: bool = False) -> int:
    """The receptive field; `early` makes the mistake of counting a stride too soon."""
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * (jump * stride if early else jump)
        jump *= stride
    return field


@exercise("patchify")
def check_patchify(patchify):
    """patchify(pictures (B, C, H, W), p) -> (B, N, C·p·p), as F.unfold orders it."""
    pictures = torch.arange(2.0 * 3 * 4 * 6).view(2, 3, 4, 6)
    seen = tried(patchify(pictures, 2))
    expect(isinstance(seen, torch.Tensor), f"you returned a {type(seen).__name__}.")
    expect(
        seen.shape == (2, 6, 12),
        f"two 3×4×6 pictures in patches of 2 gave the shape {tuple(seen.shape)}; it is "
        "(2, 6, 12): pictures, patches, numbers in a patch.",
    )
    grid = pictures.reshape(2, 3, 2, 2, 3, 2)  # B, C, row, y, column, x
    expect(
        not torch.equal(seen, pictures.reshape(2, 6, 12)),
        "the first patch holds 12 numbers that lie in a row of the picture; split H "
        "and W first, then bring the axes of a patch together with permute.",
    )
    expect(
        not torch.equal(seen, grid.permute(0, 2, 4, 3, 5, 1).reshape(2, 6, 12)),
        "inside a patch the channels come last; a convolution's weight has them first: "
        "channel, row, column.",
    )
    expect(
        not torch.equal(seen, grid.permute(0, 4, 2, 1, 3, 5).reshape(2, 6, 12)),
        "the patches run down the columns; read them like text, row by row.",
    )
    right = F.unfold(pictures, 2, stride=2).transpose(1, 2)
    expect(
        torch.equal(seen, right),
        "the numbers are not where F.unfold puts them; name the six axes after the "
        "split (B, C, rows, p, columns, p) and write down their new order.",
    )
    square = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expect(
        close(patchify(square, 4), F.unfold(square, 4, stride=4).transpose(1, 2)),
        "it works for patches of 2 and not for patches of 4; use the argument p.",
    )
    return "right, in the order of the patch convolution's weight"


@exercise("count_vit")
def check_count_vit(count_vit):
    """count_vit(image_size, patch_size, width, depth) -> weights of the ViT brick."""
    for size, patch, width, depth in [
        (64, 8, 96, 3),
        (64, 16, 192, 6),
        (224, 32, 768, 12),
    ]:
        n = (size // patch) ** 2
        right = 3 * patch**2 * width + (n + 4 + 2) * width
        right += depth * (12 * width**2 + 13 * width)
        seen = _number(count_vit(size, patch, width, depth), "a count")
        hints = {
            width: (
                "one vector of the width is missing: the class token, its position, or "
                "the gain or bias of a norm"
            ),
            2 * width: "one LayerNorm is missing, or the class token and its position",
            4 * width: "norm_pre and norm_post are missing, each a gain and a bias",
            -width: "one vector too many: the patch layer has no bias",
            9 * width * depth: (
                "the linear layers in a block have biases, 9 widths in all"
            ),
            4 * width * depth: "each block has two LayerNorms, each a gain and a bias",
            13 * width * depth: "the biases and norms in the blocks are missing",
            8 * width**2 * depth: "each block has an MLP: width → 4·width → width",
            width**2 * depth: "attention ends in one more width × width layer, `out`",
            2 * patch**2 * width: "a patch has three channels",
            (n + 1) * width: "the positions are learned too: one for each token",
        }
        missing = right - seen
        hint = hints.get(missing, "compare with ViT(...).named_parameters()")
        few = f"{abs(missing):,.0f} too {'few' if missing > 0 else 'many'}"
        expect(
            missing == 0,
            f"count_vit({size}, {patch}, {width}, {depth}) gave {seen:,.0f}, {few}; "
            f"{hint}.",
        )
    return "right; the last of the three is the image tower of CLIP's ViT-B/32"


@exercise("head")
def check_head(head):
    """head(x (L, w), wq, wk, wv (w, d)) -> (L, d): one attention head, no biases."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, generator=g)
    wq, wk, wv = (torch.randn(8, 4, generator=g) for _ in range(3))
    seen = tried(head(x, wq, wk, wv))
    expect(isinstance(seen, torch.Tensor), f"you returned a {type(seen).__name__}.")
    expect(
        seen.shape == (5, 4),
        f"five tokens and a head of width 4 gave the shape {tuple(seen.shape)}; the "
        "result has one row a token and the width of the values, (5, 4).",
    )
    q, k, v = x @ wq, x @ wk, x @ wv
    scores = q @ k.T
    wrong = [
        (scores.softmax(-1) @ v, "the scores are not divided; divide them by √d first"),
        ((scores / 4).softmax(-1) @ v, "you divided by d; divide by √d"),
        (
            (scores / 8**0.5).softmax(-1) @ v,
            "you divided by √(width of x); d is the width of a query, `wq.shape[1]`",
        ),
        (
            (scores / 2).softmax(0) @ v,
            "the softmax runs down the columns; each row must sum to 1 (dim=-1)",
        ),
        ((scores / 2) @ v, "the scores are no attention weights yet; softmax is missing"),
        (
            (scores.T / 2).softmax(-1) @ v,
            "queries and keys are swapped: row i holds what query i asks of every key",
        ),
        ((scores / 2).softmax(-1) @ k, "you mixed the keys; mix the values"),
    ]
    for value, hint in wrong:
        expect(not close(seen, value), hint + ".")
    expect(
        close(seen, (scores / 2).softmax(-1) @ v),
        "the numbers differ from softmax(q·kᵀ/√d)·v; print each step and its shape.",
    )
    return "right, equal to softmax(q·kᵀ/√d)·v"
