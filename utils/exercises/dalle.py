"""Checks of the exercises in lesson 08."""

import random

import torch
from torch import Tensor

from utils.exercises import close, exercise, expect, tried


def draws(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@exercise("finish a picture")
def check_fixed_first(fixed_first):
    for seed, (rows, total) in enumerate([(4, 7), (1, 3), (6, 12)]):
        logits = draws(rows, total, seed=seed)
        code = torch.arange(rows) % total
        code[rows // 2 :] = -1
        if seed:
            code[0] = total - 1
        before = logits.clone()
        seen = tried(fixed_first(logits, code))
        expect(isinstance(seen, Tensor), "return a tensor")
        expect(torch.equal(logits, before), "you changed the logits you were given; copy them")
        expect(
            seen.shape == logits.shape,
            f"for logits {tuple(logits.shape)} the shape is {tuple(seen.shape)}",
        )
        fixed, free = code >= 0, code < 0
        expect(close(seen[free], logits[free]), "a row with −1 is drawn freely; leave it as it is")
        chances = seen[fixed].softmax(-1)
        expect(bool(chances.isfinite().all()), "a row has no code left that could be drawn")
        own = chances.gather(1, code[fixed].unsqueeze(1))
        expect(bool((own > 0).all()), "the wanted code cannot come, but another code can")
        expect(bool((own == 1).all()), "other codes can still be drawn; give them −∞")
    return "the top of a picture can be given, and the model draws the rest"


def blocks(side: int, size: int, turned: bool = False, strict: bool = False) -> Tensor:
    """The answer; `turned` and `strict` are for answers that are wrong."""
    row = torch.arange(side).repeat_interleave(side) // size
    column = torch.arange(side).repeat(side) // size
    block = column * (side // size) + row if turned else row * (side // size) + column
    return block.unsqueeze(1) > block if strict else block.unsqueeze(1) >= block


@exercise("the mask of a block")
def check_block_mask(block_mask):
    for side, size in ((4, 2), (6, 3), (6, 2), (3, 1), (4, 4)):
        seen = tried(block_mask(side, size))
        expect(isinstance(seen, Tensor), "return a tensor")
        expect(seen.shape == (side**2, side**2), f"for side {side} it is {tuple(seen.shape)}")
        expect(seen.dtype == torch.bool, f"a mask is bool; this one is {seen.dtype}")
        right, said = blocks(side, size), f"for side {side} and blocks of {size}"
        if torch.equal(seen, right):
            continue
        expect(not torch.equal(seen, right.T), f"{said}: the row asks; yours is transposed")
        expect(
            not torch.equal(seen, blocks(side, size, strict=True)),
            f"{said}: a code looks at its own block, too",
        )
        expect(
            not torch.equal(seen, blocks(side, size, turned=True)),
            f"{said}: blocks are counted row by row, yours column by column",
        )
        causal = torch.ones_like(right).tril()
        expect(
            not torch.equal(seen, right & causal),
            f"{said}: in its own block a code also looks at those after it",
        )
        expect(not torch.equal(seen, causal), f"{said}: this is the mask of single codes")
        wrong = int((seen != right).sum())
        expect(False, f"{said}: {wrong} of {right.numel()} entries are wrong")
    return "whole blocks can be drawn at once"


@exercise("the size of a cache")
def check_cache_bytes(cache_bytes):
    rng = random.Random(0)
    for _ in range(5):
        given = [rng.randint(2, 90) for _ in range(4)] + [rng.choice((2, 4))]
        seen = tried(cache_bytes(*given))
        right = 2
        for number in given:
            right *= number
        said = f"for {given} you returned {seen}"
        expect(seen != right // 2, f"{said}: keys *and* values are kept")
        expect(seen != right // given[4], f"{said}: these are numbers; how many bytes has each?")
        expect(seen != right // given[2], f"{said}: every layer keeps its own")
        expect(seen != right // given[3], f"{said}: every picture of the batch needs its own")
        expect(seen == right, f"{said}; it is {right}")
    return "now you know how many pictures fit at once"


@exercise("away from something")
def check_steer(steer):
    for seed, (scale, away) in enumerate([(2.0, 0.0), (1.5, 0.7), (0.0, 1.0)]):
        free, wanted, unwanted = draws(3, 4, 9, seed=seed)
        seen = tried(steer(free, wanted, unwanted, scale, away))
        towards = free + scale * (wanted - free)
        right = towards - away * (unwanted - free)
        said = f"with scale {scale} and away {away}"
        expect(
            not away or not close(seen, towards + away * (unwanted - free)),
            f"{said} it moves *towards* what is unwanted",
        )
        expect(
            not away or not close(seen, towards - away * unwanted),
            f"{said}: the way away starts at `free`, too",
        )
        expect(
            not away or not close(seen, towards - away * (unwanted - wanted)),
            f"{said}: both differences start at `free`",
        )
        expect(
            not close(seen, wanted + scale * (wanted - free) - away * (unwanted - free)),
            f"{said}: start at `free`, not at `wanted`",
        )
        expect(close(seen, right), f"{said} the logits are others")
    return "what is said not to be there weighs as well"
