"""The blanks of lesson 07."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bricks import vqgan as bricks
from utils.bricks.vqgan import keep_nucleus, keep_top_k
from utils.exercises import NotTried, close, expect
from utils.practice import Checks, attempt

check = Checks(bricks)

# ---------------------------------------------------------------- the critic


def score_cases(generator):
    for shape in (7,), (2, 1, 3, 3), (5, 2):
        yield (2 * torch.randn(2, *shape, generator=generator)).unbind()


def hinge(real=lambda d: F.relu(1 - d), fake=lambda d: F.relu(1 + d), scale=0.5):
    """`critic_loss` with a part left out or turned."""
    return lambda one, other: scale * (real(one).mean() + fake(other).mean())


check.function(
    "critic_loss",
    "`F.relu(1 - real)` is what a real score lacks to 1, `F.relu(1 + fake)` what a drawn one lies "
    "above −1. The mean of each, and half their sum.",
    score_cases,
    {
        "halve the sum": hinge(scale=1.0),
        "drawn scores should be below −1, so what counts is 1 + D": hinge(
            fake=lambda d: F.relu(1 - d)
        ),
        "the two have changed places: real scores should be high": hinge(
            lambda d: F.relu(1 + d), lambda d: F.relu(1 - d)
        ),
        "without max(0, …) the critic pushes sure scores on for ever": hinge(
            lambda d: 1 - d, lambda d: 1 + d
        ),
        "the margin is 1, not 0": hinge(lambda d: F.relu(-d), lambda d: F.relu(d)),
    },
)

# ---------------------------------------------------------------- the adaptive weight


@check.blank(
    "adaptive_weight",
    "`torch.autograd.grad(loss, last, retain_graph=True)[0]` is the gradient of a loss; its "
    "`.norm()` is how hard it pulls. The ratio of the two, with 1e-4 added below, clamped to "
    "[0, ceiling] and detached.",
)
def judge_weight(answer, shipped):
    for seed, (loudness, ceiling) in enumerate([(1.0, 1e4), (50.0, 1e4), (1e-6, 20.0)]):
        generator = torch.Generator().manual_seed(seed)
        last, way, other = torch.randn(3, 4, 3, generator=generator)
        last.requires_grad_()
        nll, fooling = (last * way).sum() + 2, loudness * (last * other).square().sum()
        seen = attempt(answer, nll, fooling, last, ceiling)
        if seen is Ellipsis:
            raise NotTried
        right = shipped(nll, fooling, last, ceiling)
        expect(isinstance(seen, Tensor) and seen.ndim == 0, "return a tensor with one number")
        pulls = [
            torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (nll, fooling)
        ]
        one, two = (pull.norm() for pull in pulls)
        expect(close(one, two) or not close(seen, two / one), "the ratio is upside down")
        expect(
            not close(seen, nll / fooling), "this is the ratio of the losses; take their gradients"
        )
        squares = one.square() / two.square()
        expect(not close(seen, squares), "these are squared lengths; a norm has a root")
        if ceiling < one / two:
            expect(float(seen) <= ceiling, "it lies above `ceiling`; clamp it")
        expect(close(seen, right), f"for a ratio of {one / two:.4g} you returned {seen:.4g}")
        expect(not seen.requires_grad, "the value is right, but it carries a gradient; detach it")
        expect(last.grad is None, "it leaves a gradient in `last.grad`")
    quiet, silence = nll / 1000, 0 * fooling
    silent = shipped(quiet, silence, last), attempt(answer, quiet, silence, last)
    expect(close(*silent), "for a critic without a gradient it is no number; add 1e-4 below")


# ---------------------------------------------------------------- sampling


def row_cases(generator):
    for shape, share in ((4, 9), 0.5), ((2, 3, 6), 0.9), ((8,), 0.2):
        yield 2 * torch.randn(*shape, generator=generator), share


def nucleus(before=True, descending=True, put_back=True):
    """`keep_nucleus` with a part left out or turned."""

    def keep(logits, p):
        ordered = logits.sort(-1, descending=descending)
        chances = ordered.values.double().softmax(-1)
        sums = chances.cumsum(-1) - (chances if before else 0)
        kept = ordered.values.masked_fill(sums >= p, -torch.inf)
        return torch.empty_like(kept).scatter(-1, ordered.indices, kept) if put_back else kept

    return keep


def by_chance(logits, p):
    return logits.masked_fill(logits.softmax(-1) < p, -torch.inf)


check.function(
    "keep_nucleus",
    "Sort each row, the largest first, and take the softmax. `cumsum` minus the chance itself is "
    "what the likelier ones hold: a code goes where that is p or more. `scatter` along the sort's "
    "indices brings everything back to its place.",
    row_cases,
    {
        "the code that crosses p goes as well; it stays, so that one is always left": nucleus(
            before=False
        ),
        "it starts from the unlikely end": nucleus(descending=False),
        "the logits come back sorted; put each back to its place": nucleus(put_back=False),
        "p is compared with each chance; compare it with their sum": by_chance,
    },
)


def dart_cases(generator):
    for settings in (), (0.5,), (1.0, 3), (1.0, 0, 0.6), (2.0, 5, 0.8):
        logits = 2 * torch.randn(9, 7, generator=generator)
        yield logits, torch.rand(9, generator=generator), *settings


def thrown(warm=torch.div, late=False, argmax=False):
    """`choose` with a part left out or done in another way."""

    def choose(logits, noise, temperature=1.0, top_k=0, top_p=1.0):
        logits = logits if late else warm(logits, temperature)
        if top_k:
            logits = keep_top_k(logits, top_k)
        if top_p < 1:
            logits = keep_nucleus(logits, top_p)
        if argmax:
            return logits.argmax(-1)
        logits = warm(logits, temperature) if late else logits
        ends = logits.double().softmax(-1).cumsum(-1)
        return torch.searchsorted(ends, noise.double().unsqueeze(1), right=True)[:, 0]

    return choose


check.function(
    "choose",
    "Divide by the temperature, then `keep_top_k` (unless 0) and `keep_nucleus` (if below 1). The "
    "ends of the pieces are the `cumsum` of the softmax; the code is the first whose end lies "
    "above the noise: `torch.searchsorted(ends, noise.unsqueeze(1), right=True)[:, 0]`.",
    dart_cases,
    {
        "the logits are multiplied by the temperature; divide": thrown(torch.mul),
        "the temperature comes last; it comes first, before k and p": thrown(late=True),
        "this is always the likeliest; the noise decides": thrown(argmax=True),
    },
)

# ---------------------------------------------------------------- the sliding window


def place_cases(generator):
    for height, width, side in (5, 9, 3), (8, 20, 8), (13, 6, 4):
        for row, column in (0, 0), (height // 2, width // 2), (height - 1, width - 1):
            yield row, column, height, width, side


def placed(half=2, low=True, high=True):
    """`window` with a part left out."""

    def window(row, column, height, width, side):
        places = []
        for place, size in ((row, height), (column, width)):
            start = place - side // half if half else place
            start = max(start, 0) if low else start
            places.append(min(start, size - side) if high else start)
        return tuple(places)

    return window


check.function(
    "window",
    "Half a side above and to the left of the place: `row - side // 2`. Not below 0, and not "
    "above `height - side`.",
    place_cases,
    {
        "the window starts at the place; it lies in its middle": placed(half=0),
        "the window sticks out above or to the left": placed(low=False),
        "the window sticks out below or to the right": placed(high=False),
    },
)
