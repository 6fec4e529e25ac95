"""The blanks of lesson 06."""

import math

import torch

from utils.bricks import dvae as bricks
from utils.bricks.dvae import EDGE, gumbel_noise
from utils.practice import Checks

check = Checks(bricks)

# ---------------------------------------------------------------- draws


def logit_cases(generator):
    for shape in (7,), (3, 5), (2, 4, 4, 9):
        yield (2 * torch.randn(*shape, generator=generator),)


check.function(
    "gumbel_max",
    "Add Gumbel noise to the logits; the number of the largest, along the last axis, is the draw.",
    logit_cases,
    {
        "without noise this is always the likeliest code": lambda logits: logits.argmax(-1),
        "the noise has the wrong sign: the first clock has the *largest* l + g": lambda logits: (
            (logits - gumbel_noise(logits)).argmax(-1)
        ),
        "this is the clock that rings last; take the largest": lambda logits: (
            (logits + gumbel_noise(logits)).argmin(-1)
        ),
    },
)


def relaxed_cases(generator):
    for (logits,), tau, hard in zip(
        logit_cases(generator), (1.0, 0.25, 2.0), (False, True, False), strict=True
    ):
        yield logits, tau, False
        yield logits, tau, hard


def relaxed(noise=gumbel_noise, divide=lambda x, g, tau: (x + g) / tau, axis=-1, passed=True):
    """`gumbel_softmax` with a part left out or turned."""

    def gumbel_softmax(logits, tau, hard=False):
        weights = divide(logits, noise(logits), tau).softmax(axis)
        if not hard:
            return weights
        one_hot = torch.zeros_like(weights).scatter_(-1, weights.argmax(-1, True), 1.0)
        return one_hot - weights.detach() + weights if passed else one_hot

    return gumbel_softmax


check.function(
    "gumbel_softmax",
    "(logits + noise) / tau through a softmax along the last axis. When hard, make the one-hot of "
    "the largest weight and add `weights - weights.detach()`, which is 0 with a gradient.",
    relaxed_cases,
    {
        "without noise it is no draw": relaxed(noise=torch.zeros_like),
        "tau divides logits *and* noise": relaxed(divide=lambda x, g, tau: x / tau + g),
        "tau divides; at a low one the weights grow hard": relaxed(
            divide=lambda x, g, tau: (x + g) * tau
        ),
        "the noise has the wrong sign": relaxed(divide=lambda x, g, tau: (x - g) / tau),
        "the weights of one place should add up to 1: softmax along the last axis": relaxed(axis=0),
    },
)

# ---------------------------------------------------------------- the prior


def divergence(base=1.0, sign=1.0, count=True):
    """`kl_from_uniform` with a part left out or turned."""

    def kl(logits):
        log_q = logits.log_softmax(-1)
        entropy = -(log_q.exp() * log_q).sum(-1)
        return sign * (count * math.log(logits.shape[-1]) - entropy) / base

    return kl


check.function(
    "kl_from_uniform",
    "With `log_q = logits.log_softmax(-1)` the entropy is −Σ q·ln q. The divergence is ln K minus "
    "that, K the number of codes: 0 for a uniform q, ln K for a sure one.",
    logit_cases,
    {
        "this is in bits; the brick gives nats": divergence(base=math.log(2)),
        "ln K is missing: for a uniform q the divergence is 0": divergence(count=False),
        "the sign is turned: a sure q is *far* from uniform": divergence(sign=-1.0),
        "this is the entropy, which is largest for a uniform q": lambda logits: (
            -(logits.log_softmax(-1).exp() * logits.log_softmax(-1)).sum(-1)
        ),
        "this is the divergence of the uniform one from q; the two have changed places": (
            lambda logits: -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])
        ),
    },
)

# ---------------------------------------------------------------- pixels in a box


def density_cases(generator):
    for shape in (6,), (2, 3, 4, 4):
        x, mu, log_b = torch.rand(3, *shape, generator=generator).unbind()
        yield 0.1 + 0.8 * x, 4 * mu - 2, 2 * log_b - 1


def density(stretch=-1.0, half=True, width=True, inside=torch.logit, power=torch.abs):
    """`logit_laplace` with a part left out or turned."""

    def logit_laplace(x, mu, log_b):
        found = stretch * (x.log() + (-x).log1p()) - half * math.log(2) - width * log_b
        return found - power(inside(x) - mu) / log_b.exp()

    return logit_laplace


check.function(
    "logit_laplace",
    "The logarithm of 1 / (2·b·x·(1 − x)) · exp(−|logit(x) − μ| / b): a sum of four parts. "
    "`x.logit()` is ln x/(1 − x), and ln b is given.",
    density_cases,
    {
        "x(1 − x) is missing: it does not integrate to 1": density(stretch=0.0),
        "x(1 − x) stands below the line, so its logarithm is taken away": density(stretch=1.0),
        "the 2 of 2b is missing": density(half=False),
        "1/b is missing: a wide distribution is low": density(width=False),
        "μ is a logit, so compare it with the logit of x": density(inside=lambda x: x),
        "a Laplace distribution falls with the distance, not with its square": density(
            power=torch.square
        ),
    },
)


def value_cases(generator):
    yield (torch.tensor([0.0, 0.05, 0.1, 0.3, 0.5, 0.9, 0.97, 1.0]),)
    yield (torch.rand(2, 3, 4, 4, generator=generator),)


check.function(
    "unmap_pixels",
    "Take EDGE away, divide by 1 − 2·EDGE, and clamp to [0, 1]: the way back from [0.1, 0.9].",
    value_cases,
    {
        "what lies beyond an edge becomes the edge: clamp it": lambda values: (
            (values - EDGE) / (1 - 2 * EDGE)
        ),
        "the way back divides by 1 − 2·EDGE": lambda values: (
            ((values - EDGE) * (1 - 2 * EDGE)).clamp(0, 1)
        ),
        "this is the way there, not back": lambda values: (1 - 2 * EDGE) * values + EDGE,
        "there are two edges: 1 − 2·EDGE": lambda values: (
            ((values - EDGE) / (1 - EDGE)).clamp(0, 1)
        ),
        "EDGE was added on the way there; take it away first": lambda values: (
            (values / (1 - 2 * EDGE)).clamp(0, 1)
        ),
    },
)

# ---------------------------------------------------------------- schedules


def schedule_cases(generator):
    for step in (0, 3, 5, 10, 25):
        yield step, 1.0, 1 / 16, 10
        yield step, 0.0, 6.6, 7


def schedule(turn=1.0, capped=True, curve=lambda s: (1 + math.cos(math.pi * s)) / 2):
    """`annealed` with a part left out or turned."""

    def annealed(step, start, end, steps):
        share = min(1.0, step / steps) if capped else step / steps
        return end + turn * (start - end) * curve(share)

    return annealed


check.function(
    "annealed",
    "The share of the way is `min(1, step / steps)`. Half a cosine, (1 + cos(π·share)) / 2, falls "
    "from 1 to 0; it weighs `start - end`, and `end` is added.",
    schedule_cases,
    {
        "after `steps` it comes back up; cap the share at 1": schedule(capped=False),
        "this is a straight line; half a cosine starts and ends gently": schedule(
            curve=lambda s: 1 - s
        ),
        "start and end have changed places": lambda step, start, end, steps: schedule()(
            step, end, start, steps
        ),
        "a whole cosine goes down and up again; the brick takes half of one": schedule(
            curve=lambda s: (1 + math.cos(2 * math.pi * s)) / 2
        ),
    },
)
