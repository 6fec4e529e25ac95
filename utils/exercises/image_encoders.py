"""Checks of the exercises in lesson 01."""

import random

import torch
import torch.nn.functional as F

from utils.exercises import Calls, draws, exercise, expect, judge, number, tensor, whole


@exercise("conv_size")
def check_conv_size(conv_size):
    """conv_size(size, kernel, stride, padding) -> size of a convolution's output."""
    settings = [(5, 3, 1, 0), (64, 3, 1, 1), (64, 8, 8, 0), (224, 7, 2, 3), (10, 3, 2, 0)]
    rng = random.Random(0)
    settings += [
        (rng.randint(9, 99), rng.randint(1, 9), rng.randint(1, 5), rng.randint(0, 4))
        for _ in range(10)
    ]
    for size, kernel, stride, padding in settings:
        seen = number(conv_size(size, kernel, stride, padding), "a size is one whole number")
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
    return f"right, and equal to torch's convolution for {len(settings)} settings"


@exercise("receptive_field")
def check_receptive_field(receptive_field):
    """receptive_field([(kernel, stride), ...]) -> pixels one output sees in a row."""
    stacks = [
        [(3, 1)],
        [(3, 1), (3, 1)],
        [(3, 1), (3, 1), (3, 1)],
        [(5, 2), (3, 1), (3, 2)],
        [(4, 4), (3, 1), (3, 1)],
        [(3, 1), (2, 2), (3, 1), (2, 2), (3, 1)],
    ]
    rng = random.Random(0)
    stacks += [[(rng.randint(1, 7), rng.randint(1, 4)) for _ in range(n)] for n in (2, 3, 4, 6)]
    for layers in stacks:
        right, early = _field(layers), _field(layers, early=True)
        seen = whole(receptive_field(list(layers)), "a receptive field is one whole number")
        product = 1
        for kernel, _ in layers:
            product *= kernel
        hints = {
            sum(k for k, _ in layers): ("windows overlap: a layer adds kernel − 1, not kernel"),
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


# what cuts a picture without a loop: nothing is computed, entries only change places
MOVES = set(
    "reshape view permute transpose swapaxes swapdims movedim moveaxis flatten unflatten "
    "contiguous clone size dim __get__ __len__".split()
)


@exercise("patchify")
def check_patchify(patchify):
    """patchify(pictures (B, C, H, W), p) -> (B, N, C·p·p), as F.unfold orders it."""
    rng = random.Random(0)
    sizes = [(2, 3, 2, 3, 2), (1, 3, 2, 2, 4)]
    sizes += [[rng.randint(1, 5) for _ in range(5)] for _ in range(8)]
    for b, c, rows, columns, p in sizes:
        shape = (b, c, rows * p, columns * p)
        pictures = torch.arange(1.0 * b * c * rows * columns * p * p).view(shape)
        seen = tensor(patchify(pictures, p))
        wanted = (b, rows * columns, c * p * p)
        expect(
            seen.shape == wanted,
            f"pictures {shape} in patches of {p} gave the shape {tuple(seen.shape)}; it is "
            f"{wanted}: pictures, patches, numbers in a patch, for any p and any channels.",
        )
        other = Calls(patchify, pictures, p).torch - MOVES
        expect(
            not other,
            f"you used {', '.join(sorted(other))}; reshape and permute can do it alone.",
        )
        grid = pictures.reshape(b, c, rows, p, columns, p)
        judge(
            seen,
            F.unfold(pictures, p, stride=p).transpose(1, 2),
            {
                "the first patch holds numbers that lie in a row of the picture; split H and W "
                "first, then bring the axes of a patch together with permute.": (
                    pictures.reshape(wanted)
                ),
                "inside a patch the channels come last; a convolution's weight has them first: "
                "channel, row, column.": grid.permute(0, 2, 4, 3, 5, 1).reshape(wanted),
                "the patches run down the columns; read them like text, row by row.": (
                    grid.permute(0, 4, 2, 1, 3, 5).reshape(wanted)
                ),
            },
            f"the numbers of pictures {shape} are not where F.unfold puts them; name the six "
            "axes after the split (B, C, rows, p, columns, p) and write down their new order.",
        )
    return "right, in the order of the patch convolution's weight"


@exercise("count_vit")
def check_count_vit(count_vit):
    """count_vit(image_size, patch_size, width, depth) -> weights of the ViT brick."""
    rng = random.Random(0)
    settings = [(64, 8, 96, 3), (64, 16, 192, 6)]
    for _ in range(4):
        patch = rng.choice((4, 8, 14, 16))
        settings.append(
            (patch * rng.randint(2, 9), patch, 8 * rng.randint(3, 40), rng.randint(1, 9))
        )
    for size, patch, width, depth in [*settings, (224, 32, 768, 12)]:
        n = (size // patch) ** 2
        right = 3 * patch**2 * width + (n + 4 + 2) * width
        right += depth * (12 * width**2 + 13 * width)
        seen = whole(count_vit(size, patch, width, depth), "a count is one whole number")
        hints = {
            width: (
                "one vector of the width is missing: the class token, its position, or "
                "the gain or bias of a norm"
            ),
            2 * width: "one LayerNorm is missing, or the class token and its position",
            4 * width: "norm_pre and norm_post are missing, each a gain and a bias",
            -width: "one vector too many: the patch layer has no bias",
            9 * width * depth: ("the linear layers in a block have biases, 9 widths in all"),
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
            f"count_vit({size}, {patch}, {width}, {depth}) gave {seen:,.0f}, {few}; {hint}.",
        )
    return "right; the last of them is the image tower of CLIP's ViT-B/32"


@exercise("a larger picture")
def check_resize_positions(resize_positions):
    for seed, (old, new) in enumerate([(2, 4), (3, 5), (4, 3), (5, 5), (1, 3), (2, 7)]):
        width = seed + 1
        positions = draws(1 + old**2, width, seed=seed).requires_grad_()
        answer = tensor(resize_positions(positions, old, new))
        shape = (1 + new**2, width)
        expect(
            tuple(answer.shape) == shape,
            f"from {old}×{old} to {new}×{new} patches: {shape}, not {tuple(answer.shape)}",
        )

        def resized(grid, first=positions[:1], size=(new, new), **options):
            grid = F.interpolate(grid, size, **{"mode": "bilinear"} | options)
            return torch.cat([first, grid.flatten(2)[0].T])

        grid = positions[1:].T.reshape(1, width, old, old)
        judge(
            answer,
            resized(grid),
            {
                "the class token has no place in the map: it stays as it is": torch.cat(
                    [resized(grid)[1:], positions[:1]]
                ),
                "rows and columns have changed places": resized(grid.transpose(2, 3)),
                "reshape (old², w) to (w, old, old) mixes numbers of several positions; "
                "transpose first": resized(positions[1:].reshape(1, width, old, old)),
                'these are the nearest old ones; take mode="bilinear"': resized(
                    grid, mode="nearest"
                ),
                "leave align_corners as it is: the patches are squares, not points": resized(
                    grid, align_corners=True
                ),
                "the class token was resized with the rest": F.interpolate(
                    positions.T[None], size=shape[0], mode="linear"
                )[0].T,
            },
            f"from {old}×{old} to {new}×{new}, the map of the patches' positions is another",
        )
        expect(answer.requires_grad, "no gradient comes back to the positions: do not detach")
    return "the same weights now take a picture of another size"
