"""The blanks of lesson 10."""

import math

import torch

from utils.bricks import diffusion as bricks
from utils.bricks.diffusion import spread
from utils.practice import Checks

check = Checks(bricks)


def shares(count: int, generator) -> torch.Tensor:
    """Shares of signal strictly between 0 and 1, (count,)."""
    return 0.05 + 0.9 * torch.rand(count, generator=generator)


# ---------------------------------------------------------------- noise


def noise_cases(generator):
    for shape in (2, 3, 4, 4), (5, 3), (1, 2, 2, 6):
        x0, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        yield x0, noise, shares(shape[0], generator)


def noisy(keep, bring):
    """`add_noise` with other factors of the picture and of the noise."""

    def add_noise(x0, noise, signal):
        signal = spread(signal, x0)
        return keep(signal) * x0 + bring(signal) * noise

    return add_noise


check.function(
    "add_noise",
    "`spread(signal, x0)` gives each row its own ᾱ in a shape that multiplies. ᾱ is a share of the "
    "*variance*, so the numbers are multiplied by its root, and the noise by the root of the rest.",
    noise_cases,
    {
        "ᾱ and 1 − ᾱ are shares of the variance; multiply by their roots": noisy(
            lambda a: a, lambda a: 1 - a
        ),
        "the noise is multiplied by 1 − √ᾱ; it is √(1 − ᾱ)": noisy(
            lambda a: a.sqrt(), lambda a: 1 - a.sqrt()
        ),
        "picture and noise have changed places": noisy(
            lambda a: (1 - a).sqrt(), lambda a: a.sqrt()
        ),
        "the picture does not shrink; multiply it by √ᾱ": noisy(
            lambda a: torch.ones_like(a), lambda a: (1 - a).sqrt()
        ),
    },
)

# ---------------------------------------------------------------- what an answer says


def answer_cases(generator):
    for kind in "eps", "x0", "v":
        said, x = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
        yield kind, said, x, shares(3, generator)


def read(eps=None, x0=None, v=None):
    """`read_off` with another answer to some kinds: each maps (said, x, √ᾱ, √(1−ᾱ))."""
    changed = {"eps": eps, "x0": x0, "v": v}

    def read_off(kind, said, x, signal):
        if not changed[kind]:
            return bricks.read_off(kind, said, x, signal)
        signal = spread(signal, x)
        return changed[kind](said, x, signal.sqrt(), (1 - signal).sqrt())

    return read_off


check.function(
    "read_off",
    "x = √ᾱ·x₀ + √(1−ᾱ)·ε holds in any case. For 'eps' solve it for x₀, for 'x0' solve it for ε. "
    "For 'v', take √ᾱ·x − √(1−ᾱ)·v and √(1−ᾱ)·x + √ᾱ·v, put in what x and v are, and see what is "
    "left.",
    answer_cases,
    {
        "for 'eps', x₀ is divided by √ᾱ": read(eps=lambda s, x, a, b: (x - b * s, s)),
        "for 'x0', ε is divided by √(1−ᾱ)": read(x0=lambda s, x, a, b: (s, x - a * s)),
        "for 'v', the sign of v in x₀ is turned": read(
            v=lambda s, x, a, b: (a * x + b * s, b * x + a * s)
        ),
        "for 'v', the sign of v in ε is turned": read(
            v=lambda s, x, a, b: (a * x - b * s, b * x - a * s)
        ),
        "for 'v', the two roots have changed places": read(
            v=lambda s, x, a, b: (b * x - a * s, a * x + b * s)
        ),
        "return the picture first, then the noise": lambda *given: bricks.read_off(*given)[::-1],
    },
)

# ---------------------------------------------------------------- the posterior


def level_cases(generator):
    for shape in (3, 2, 4, 4), (2, 3):
        x0, x = (torch.randn(shape, generator=generator) for _ in range(2))
        before = shares(shape[0], generator)
        yield x0, x, before * shares(shape[0], generator), before
    yield x0, x, torch.tensor([0.9, 0.3]), torch.ones(2)


def stepped(of_x0=None, of_x=None, small=None, large=None):
    """`posterior` with other parts: each maps (ᾱ_t, ᾱ_s, α, β)."""

    def posterior(x0, x, now, before):
        now, before = spread(now, x), spread(before, x)
        kept = now / before
        parts = now, before, kept, 1 - kept
        first = of_x0(*parts) if of_x0 else before.sqrt() * (1 - kept) / (1 - now)
        second = of_x(*parts) if of_x else kept.sqrt() * (1 - before) / (1 - now)
        narrow = small(*parts) if small else (1 - kept) * (1 - before) / (1 - now)
        return first * x0 + second * x, narrow, large(*parts) if large else 1 - kept

    return posterior


check.function(
    "posterior",
    "α = ᾱ_t/ᾱ_s is what the step keeps, β = 1 − α. The mean has two parts over 1 − ᾱ_t: "
    "√ᾱ_s·β·x₀ and √α·(1 − ᾱ_s)·x. β̃ is β·(1 − ᾱ_s)/(1 − ᾱ_t).",
    level_cases,
    {
        "the factor of x₀ has ᾱ_s where √ᾱ_s belongs": stepped(
            of_x0=lambda t, s, a, b: s * b / (1 - t)
        ),
        "the factor of x has α where √α belongs": stepped(
            of_x=lambda t, s, a, b: a * (1 - s) / (1 - t)
        ),
        "in the factor of x₀, √ᾱ_t stands in the place of √ᾱ_s": stepped(
            of_x0=lambda t, s, a, b: t.sqrt() * b / (1 - t)
        ),
        "the small variance is the same as the large one": stepped(small=lambda t, s, a, b: b),
        "the small variance is turned: (1 − ᾱ_s)/(1 − ᾱ_t) is below 1": stepped(
            small=lambda t, s, a, b: b * (1 - t) / (1 - s).clamp(min=1e-6)
        ),
        "return variances, not their roots": stepped(
            small=lambda t, s, a, b: (b * (1 - s) / (1 - t)).sqrt(),
            large=lambda t, s, a, b: b.sqrt(),
        ),
        "the mean is not divided by 1 − ᾱ_t": stepped(
            of_x0=lambda t, s, a, b: s.sqrt() * b, of_x=lambda t, s, a, b: a.sqrt() * (1 - s)
        ),
    },
)

# ---------------------------------------------------------------- the time


def time_cases(generator):
    for width in 8, 2, 64:
        yield torch.randint(1000, (5,), generator=generator), width
    yield torch.arange(4), 6, 100.0


def waves(speeds, parts):
    """`timestep_embedding` with other speeds (half, longest), and parts of the angles."""

    def embedding(t, width, longest=10_000.0):
        return parts(t.float().unsqueeze(1) * speeds(width // 2, longest))

    return embedding


def falling(half, longest):
    return torch.exp(-math.log(longest) * torch.arange(half) / half)


check.function(
    "timestep_embedding",
    "The speeds fall evenly in the exponent: longest^(−i/half), i = 0 … half − 1. The angles are "
    "t times the speeds, (B, half); their cosines and then their sines stand side by side.",
    time_cases,
    {
        "sines stand before the cosines; the cosines come first": waves(
            falling, lambda a: torch.cat([a.sin(), a.cos()], 1)
        ),
        "cosines and sines take turns; all cosines come first": waves(
            falling, lambda a: torch.stack([a.cos(), a.sin()], 2).flatten(1)
        ),
        "the speeds grow; they fall from 1": waves(
            lambda half, longest: torch.exp(math.log(longest) * torch.arange(half) / half),
            lambda a: torch.cat([a.cos(), a.sin()], 1),
        ),
        "the exponent is divided by the width; it is by half of it": waves(
            lambda half, longest: torch.exp(-math.log(longest) * torch.arange(half) / (2 * half)),
            lambda a: torch.cat([a.cos(), a.sin()], 1),
        ),
    },
)
