"""The blanks of lesson 12."""

import torch

from utils.bricks import clip_guidance as bricks
from utils.bricks.diffusion import spread
from utils.practice import Checks

check = Checks(bricks)

# ---------------------------------------------------------------- the blend


def blend_cases(generator):
    for shape in (3, 2, 4, 4), (2, 5), (4, 3, 2, 6):
        x0, x = (torch.randn(shape, generator=generator) for _ in range(2))
        yield x0, x, torch.linspace(0.05, 0.95, shape[0])


def mixed(share):
    """`blended` with another share for x̂₀, of ᾱ."""

    def blended(x0, x, signal):
        part = share(spread(signal, x))
        return part * x0 + (1 - part) * x

    return blended


check.function(
    "blended",
    "`spread(signal, x)` is ᾱ in a shape that multiplies. The share of x̂₀ is √(1 − ᾱ), and x has "
    "the rest of 1.",
    blend_cases,
    {
        "the shares are changed: with much noise the guess is to be seen": mixed(
            lambda left: 1 - (1 - left).sqrt()
        ),
        "the share of x̂₀ is √(1 − ᾱ), that of the noise; yours is √ᾱ": mixed(
            lambda left: left.sqrt()
        ),
        "the root is missing: √(1 − ᾱ)": mixed(lambda left: 1 - left),
        "the two shares add up to 1; √ᾱ is not the rest": (
            lambda x0, x, signal: (
                (1 - spread(signal, x)).sqrt() * x0 + spread(signal, x).sqrt() * x
            )
        ),
    },
)

# ---------------------------------------------------------------- how many cut-outs


def count_cases(generator):
    for times in 1000, 50:
        for cuts in 1, 4, 8, 11, 16:
            for share in 0.999, 0.6, 0.58, 0.0:
                yield int(share * times), times, cuts


def counted(when=lambda t, times: t >= 0.6 * times, few=lambda cuts: cuts // 4):
    def cut_counts(t, times, cuts):
        less = few(cuts)
        return (cuts - less, less) if when(t, times) else (less, cuts - less)

    return cut_counts


check.function(
    "cut_counts",
    "A quarter is `cuts // 4`, the others are `cuts - cuts // 4`. In the first 40 % of the way t "
    "is at least 0.6 times `times`; then the larger part are overviews.",
    count_cases,
    {
        "t falls from `times` to 0: the way begins where it is large": counted(
            lambda t, times: t < 0.6 * times
        ),
        "40 % of the way are gone where t is 0.6 times `times`": counted(
            lambda t, times: t >= 0.4 * times
        ),
        "at t = 0.6 · `times` it is still early": counted(lambda t, times: t > 0.6 * times),
        "quarters are rounded down": counted(few=lambda cuts: -(-cuts // 4)),
        "the two kinds add up to `cuts`": (
            lambda t, times, cuts: (
                (3 * cuts // 4, cuts // 4) if t >= 0.6 * times else (cuts // 4, 3 * cuts // 4)
            )
        ),
    },
)

# ---------------------------------------------------------------- the limit


def slope_cases(generator):
    for shape, most in ((4, 3, 4, 4), 1.0), ((3, 6), 0.05), ((2, 3, 2, 5), 0.5):
        sizes = most * torch.tensor([3.0, 0.2, 1.0, 40.0])[: shape[0]]
        grad = torch.randn(shape, generator=generator)
        yield spread(sizes, grad) * grad, most


def scaled(size, factor=lambda size, most: (most / size).clamp(max=1)):
    return lambda grad, most: grad * spread(factor(size(grad), most), grad)


def rms(grad):
    return grad.flatten(1).square().mean(1).sqrt()


check.function(
    "limited",
    "The root mean square of a row: `grad.flatten(1).square().mean(1).sqrt()`. A larger one than "
    "`most` is scaled down to it: times `most / size`, but never times more than 1.",
    slope_cases,
    {
        "small gradients are enlarged; they are left as they are": scaled(
            rms, lambda size, most: most / size
        ),
        "each row has a limit of its own, not all of them one": (
            lambda grad, most: grad * (most / grad.square().mean().sqrt()).clamp(max=1)
        ),
        "that is the length of the row; its root mean square is meant": scaled(
            lambda grad: grad.flatten(1).norm(dim=1)
        ),
        "clamping each number bends the direction; scale the whole row": (
            lambda grad, most: grad.clamp(-most, most)
        ),
    },
)
