"""The blanks of lesson 11."""

import torch

from utils.bricks import sampling as bricks
from utils.bricks.diffusion import read_off, spread
from utils.practice import Checks

check = Checks(bricks)

# ---------------------------------------------------------------- a step


def step_cases(generator):
    for shape, eta in ((3, 2, 4, 4), 0.0), ((2, 3), 1.0), ((4, 3, 2, 2), 0.4):
        x0, eps, new = (torch.randn(shape, generator=generator) for _ in range(3))
        before = 0.2 + 0.7 * torch.rand(shape[0], generator=generator)
        now = before * (0.2 + 0.7 * torch.rand(shape[0], generator=generator))
        yield x0, eps, now, before, eta, new if eta else None
    yield x0, eps, now, torch.ones(4)  # the last step ends at a picture
    yield x0, eps, torch.ones(4), now  # and one that goes back to noise begins there


def stepped(variance=None, old=None, kept=None):
    """`ddim_step` with other parts: each maps (ᾱ_t, ᾱ_s, σ²)."""

    def ddim_step(x0, eps, now, before, eta=0.0, noise=None):
        now, before = spread(now, x0), spread(before, x0)
        new = eta**2 * (1 - before) / (1 - now) * (1 - now / before) if eta else 0 * now
        new = variance(now, before, eta) if variance and eta else new
        strength = old(now, before, new) if old else (1 - before - new).clamp(min=0).sqrt()
        x = (kept(now, before, new) if kept else before.sqrt()) * x0 + strength * eps
        return x if noise is None else x + new.sqrt() * noise

    return ddim_step


check.function(
    "ddim_step",
    "The picture comes in with √ᾱ_s. Of the variance 1 − ᾱ_s that noise has there, σ² is new and "
    "the rest old: √(1 − ᾱ_s − σ²)·ε + σ·z. σ² is η² times (1 − ᾱ_s)/(1 − ᾱ_t)·(1 − ᾱ_t/ᾱ_s). "
    "With η = 0 do not compute it: ᾱ_t may be 1.",
    step_cases,
    {
        "the old noise makes no room for the new one: √(1 − ᾱ_s − σ²)": stepped(
            old=lambda t, s, v: (1 - s).sqrt()
        ),
        "the noise keeps the strength that it has at t": stepped(
            old=lambda t, s, v: (1 - t - v).clamp(min=0).sqrt()
        ),
        "the picture has the strength of t; it goes on to s": stepped(
            kept=lambda t, s, v: t.sqrt()
        ),
        "the picture comes in with ᾱ_s where √ᾱ_s belongs": stepped(kept=lambda t, s, v: s),
        "η stands before σ, so σ² has its square": stepped(
            variance=lambda t, s, eta: eta * (1 - s) / (1 - t) * (1 - t / s)
        ),
        "σ² is β, the variance of the whole step; β̃ is less": stepped(
            variance=lambda t, s, eta: eta**2 * (1 - t / s)
        ),
    },
)

# ---------------------------------------------------------------- the clamp


def clamp_cases(generator):
    for shape in (3, 2, 4, 4), (2, 5), (1, 3, 2, 6):
        x0, eps = (torch.randn(shape, generator=generator) for _ in range(2))
        x0 = 1.5 * x0
        left = 0.1 + 0.8 * torch.rand(shape[0], generator=generator)
        yield x0, spread(left, x0).sqrt() * x0 + (1 - spread(left, x0)).sqrt() * eps, left


def noise_beside(picture=lambda x0: x0.clamp(-1, 1), told=None):
    """`clamped` with another picture in the noise; told: the picture that is returned."""

    def answer(x0, x, signal):
        noise = read_off("x0", picture(x0), x, signal)[1]
        return told(x0) if told else x0.clamp(-1, 1), noise

    return answer


check.function(
    "clamped",
    "Clamp the picture to [−1, 1]. Then `read_off` tells the noise, if the answer is *that* "
    "picture: the kind is x0.",
    clamp_cases,
    {
        "the noise belongs to the picture before it was clamped; read it again": noise_beside(
            lambda x0: x0
        ),
        "the picture is not clamped": noise_beside(told=lambda x0: x0),
        "pixels lie in [−1, 1] here, not in [0, 1]": noise_beside(
            lambda x0: x0.clamp(0, 1), lambda x0: x0.clamp(0, 1)
        ),
    },
)

# ---------------------------------------------------------------- guidance


def answer_cases(generator):
    for shape, guidance in ((2, 3, 4, 4), 3.0), ((3, 5), 0.0), ((1, 2), 1.0), ((4, 2), -1.5):
        yield *(torch.randn(shape, generator=generator) for _ in range(2)), guidance


check.function(
    "guided",
    "Begin at `free` and go `guidance` times the way to `asked`.",
    answer_cases,
    {
        "0 must give `free` and 1 `asked`; you went one further": (
            lambda asked, free, guidance: free + (1 + guidance) * (asked - free)
        ),
        "the difference is turned: from `free` to `asked`": (
            lambda asked, free, guidance: free + guidance * (free - asked)
        ),
        "that is the way; begin it at `free`": (
            lambda asked, free, guidance: guidance * (asked - free)
        ),
    },
)
