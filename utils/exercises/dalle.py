"""Checks of the exercises in lesson 08."""

import random

import torch
from torch import Tensor

from utils.exercises import close, draws, exercise, expect, judge, tensor, whole


@exercise("finish a picture")
def check_fixed_first(fixed_first):
    for seed, (rows, total) in enumerate([(4, 7), (1, 3), (6, 12), (9, 2), (3, 40)]):
        logits = draws(rows, total, seed=seed)
        code = torch.arange(rows) % total
        code[rows // 2 :] = -1
        if seed:
            code[0] = total - 1
        seen = tensor(fixed_first(logits, code), logits.shape)
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
    rng = random.Random(0)
    sizes = [(size * rng.randint(1, 4), size) for size in (1, 2, 3, 4)]
    for side, size in [(4, 2), (6, 3), (6, 2), (3, 1), (4, 4), *sizes]:
        seen = tensor(block_mask(side, size), (side**2, side**2))
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
        seen = whole(cache_bytes(*given), "return one whole number of bytes")
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
    for seed, (scale, away) in enumerate([(2.0, 0.0), (1.5, 0.7), (0.0, 1.0), (3.0, 2.0)]):
        free, wanted, unwanted = draws(3, 1 + seed, 9 + 4 * seed, seed=seed)
        seen = tensor(steer(free, wanted, unwanted, scale, away))
        towards = free + scale * (wanted - free)
        right = towards - away * (unwanted - free)
        said = f"with scale {scale} and away {away}"
        judge(
            seen,
            right,
            {
                f"{said} it moves *towards* what is unwanted": towards + away * (unwanted - free),
                f"{said}: the way away starts at `free`, too": towards - away * unwanted,
                f"{said}: both differences start at `free`": towards - away * (unwanted - wanted),
                f"{said}: start at `free`, not at `wanted`": right + wanted - free,
            },
            f"{said} the logits are others",
        )
    return "what is said not to be there weighs as well"
