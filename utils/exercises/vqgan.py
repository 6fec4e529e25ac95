"""Checks of the exercises in lesson 07."""

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.exercises import close, draws, exercise, expect, judge, number, several, tensor, whole


def span(layers: list, place: int, order=reversed, kept=1, margin=-1) -> tuple[int, int]:
    """The answer; `kept` and `margin` are for answers that are wrong."""
    first = last = place
    for kernel, stride, padding in order(layers):
        first = first * stride - kept * padding
        last = last * stride - kept * padding + kernel + margin
    return first, last


@exercise("where a score looks")
def check_seen_pixels(seen_pixels):
    rng = random.Random(0)
    stacks = [[(4, 1, 0)], [(3, 2, 1)], [(4, 2, 1), (4, 2, 1), (4, 1, 1), (4, 1, 1)]]
    stacks += [
        [(rng.randint(2, 7), rng.randint(1, 3), rng.randint(0, 3)) for _ in range(n)]
        for n in (2, 3, 5, 4)
    ]
    for layers in stacks:
        place = rng.randint(0, 9)
        answer = seen_pixels(list(layers), place)
        what = "return two numbers: the first and the last pixel"
        found, right = tuple(several(answer, 2, what, whole)), span(layers, place)
        if found == right:
            continue
        said = f"for {layers} and place {place} you returned {found}, and it is {right}"
        expect(found != right[::-1], f"{said}: the first comes first")
        expect(found != (right[0], right[1] + 1), f"{said}: the last is included")
        expect(
            found != span(layers, place, margin=0),
            f"{said}: a kernel of 4 ends 3 places after its first",
        )
        expect(found != span(layers, place, kept=0), f"{said}: padding moves everything")
        expect(
            found != span(layers, place, kept=-1),
            f"{said}: place 0 begins *before* the picture when there is padding",
        )
        expect(
            found != span(layers, place, order=list),
            f"{said}: start with the last layer, whose output has the place",
        )
        expect(found[0] != right[0], f"{said}: the first is right, the last is not")
        expect(False, said)
    return "now a low score can be shown on the picture"


@exercise("the critic of 2014")
def check_logistic_losses(logistic_losses):
    for seed, shape in enumerate([(5,), (2, 1, 3, 3), (4, 2), (1,), (3, 1, 7, 5)]):
        real = draws(*shape, seed=2 * seed).requires_grad_()
        fake = draws(*shape, seed=2 * seed + 1).requires_grad_()
        answer = logistic_losses(real, fake)
        pair = isinstance(answer, tuple | list) or getattr(answer, "ndim", 0) == 1
        expect(
            pair and len(answer) == 2,
            "return two scalars: the critic's loss, then the generator's",
        )
        expect(
            all(isinstance(x, Tensor) and x.ndim == 0 for x in answer),
            "each loss is a tensor with one number: take the mean over all patches",
        )
        critic, generator = answer
        high, low = F.softplus(-real).mean(), F.softplus(fake).mean()
        right, fooled = (high + low) / 2, F.softplus(-fake).mean()
        expect(
            not (close(critic, fooled) and close(generator, right)),
            "the two are in the other order: first the critic's",
        )
        expect(not close(critic, high + low), "the critic's loss is half the sum of the two means")
        expect(
            not close(critic, (F.softplus(real).mean() + F.softplus(-fake).mean()) / 2),
            "the critic is rewarded for the opposite: real scores should be high, drawn ones low",
        )
        expect(close(critic, right), "the critic's loss is another number than −log σ gives")
        expect(
            not close(generator, -low),
            "the generator's loss is log(1 − σ): it saturates. Take −log σ of the drawn scores",
        )
        expect(
            not close(generator, low),
            "the generator is rewarded for low scores; it wants the critic to say real",
        )
        expect(close(generator, fooled), "the generator's loss is the mean −log σ of drawn scores")
        expect(
            critic.requires_grad and generator.requires_grad,
            "no gradient comes back: do not detach",
        )
    scores = torch.tensor([-200.0, 200.0]).requires_grad_()
    for loss in logistic_losses(scores, scores):
        expect(
            bool(loss.isfinite()),
            f"for scores of ±200 a loss is {loss.item()}: σ became 0, and log 0 is −∞. Use "
            "log(1 + e⁻ˢ) in a form that cannot overflow",
        )
        (slope,) = torch.autograd.grad(loss, scores)
        expect(
            bool(slope.isfinite().all()) and bool((slope != 0).any()),
            "for scores of ±200 the gradient is lost or no number; clamping cuts it off",
        )
    return "a hinge lets go of what is sure; this never quite does"


@exercise("many masters")
def check_balance(balance):
    for seed, count in enumerate((2, 3, 5, 4)):
        last = draws(3 + seed, 4, seed=seed).requires_grad_()
        ways = [draws(3 + seed, 4, seed=10 * seed + i) * 10.0**i for i in range(count)]
        losses = [(last * way).sum() + 1 for way in ways]
        answer = balance(list(losses), last)
        found = torch.tensor(
            several(answer, count, f"return a list of {count} numbers, one a loss")
        )
        expect(
            not any(isinstance(x, Tensor) and x.requires_grad for x in answer),
            "a weight carries a gradient; turn it into a number or detach it",
        )
        pulls = torch.stack([way.norm() for way in ways])
        right = torch.cat([torch.ones(1), (pulls[0] / (pulls[1:] + 1e-4)).clamp(max=1e4)])
        expect(close(found[0], 1.0), f"the first weight is 1; you returned {found[0]:.4g}")
        expect(
            not close(found[1:], 1 / right[1:], 1e-3),
            "the ratio is upside down: a loss that pulls harder gets the smaller weight",
        )
        values = torch.stack([x.detach() for x in losses])
        expect(
            not close(found[1:], values[0] / values[1:], 1e-3),
            "these make the values equal; make the gradients at `last` equally long",
        )
        squares = (pulls[0] / pulls[1:]) ** 2
        expect(not close(found[1:], squares, 1e-3), "that is the ratio of squares: take the root")
        expect(close(found, right, 1e-3), "the weighted gradients at `last` differ in length")
        expect(last.grad is None, "you left a gradient in last.grad: use torch.autograd.grad")
        try:
            sum(w * x for w, x in zip(found.tolist(), losses, strict=True)).backward()
        except RuntimeError:
            expect(False, "the losses cannot be used any more: retain_graph keeps the graph")
    last = draws(2, seed=1).requires_grad_()
    losses = [last.sum() * 1e3, (last * 0).sum()]
    found = [number(x) for x in balance(losses, last)]
    expect(
        found[1] <= 1e4,
        f"a loss without any pull got the weight {found[1]:.3g}; clamp to at most 1e4",
    )
    expect(close(found[1], 1e4), "without any pull the weight runs into its clamp, 1e4")
    return "every loss has one voice"


@exercise("bits of a picture")
def check_picture_bits(picture_bits):
    for seed, (b, n, k) in enumerate([(3, 5, 7), (1, 4, 4), (4, 9, 3), (2, 1, 12), (7, 7, 2)]):
        logits = (2 * draws(b, n, k, seed=seed)).requires_grad_()
        codes = torch.randint(k, (b, n), generator=torch.Generator().manual_seed(seed))
        answer = tensor(picture_bits(logits, codes))
        nats = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")  # (B, L)
        right = nats.sum(1) / math.log(2)
        expect(
            tuple(answer.shape) == (b,),
            f"the shape is {tuple(answer.shape)}, not {(b,)}: sum over the codes of each picture",
        )
        raw = logits.gather(-1, codes.unsqueeze(-1))[..., 0].sum(1)
        judge(
            answer,
            right,
            {
                "these are nats: a bit is ln 2 of them": nats.sum(1),
                "divide by ln 2, do not multiply": right * math.log(2) ** 2,
                "this is the mean for a code; sum them": right / n,
                "the sign is turned: log of a chance is negative": -right,
                "a logit is no log chance yet: log_softmax over the K codes": -raw / math.log(2),
            },
            "not −log₂ of the chance of the codes that came",
        )
        expect(answer.requires_grad, "no gradient comes back: do not detach")
    sure = torch.zeros(1, 1, 2)
    sure[0, 0, 0] = 200.0
    expect(
        bool(picture_bits(sure, torch.ones(1, 1, dtype=torch.long)).isfinite().all()),
        "a chance became 0, and its log −∞: use log_softmax, not the log of softmax",
    )
    return "64 codes of 10 bits are 80 bytes; a good model needs far fewer"


@exercise("a knob that follows the peak")
def check_keep_min_p(keep_min_p):
    for seed, (shape, p) in enumerate(
        [((4, 9), 0.3), ((2, 3, 6), 0.1), ((7,), 0.5), ((1, 30), 0.05), ((12, 2), 0.8)]
    ):
        logits = 2 * draws(*shape, seed=seed)
        answer = tensor(keep_min_p(logits, p))
        expect(
            answer.shape == logits.shape,
            f"the shape is {tuple(answer.shape)}, not that of the logits; put −inf in place",
        )
        chances = logits.softmax(-1)
        peak = chances.amax(-1, keepdim=True)
        right = chances >= p * peak
        expect(
            not close(answer.sum(-1), torch.ones(shape[:-1])) or bool((answer < 0).any()),
            "you returned chances; return logits",
        )
        found = answer > -1e8
        expect(
            bool((answer[found] == logits[found]).all()), "what stays keeps the logit that it had"
        )
        expect(
            torch.equal(found, right) or not torch.equal(found, chances >= p),
            "p is no chance by itself: it is a share of the likeliest one's",
        )
        expect(
            torch.equal(found, right)
            or not torch.equal(found, logits >= p * logits.amax(-1, keepdim=True)),
            "compare chances, not logits: p times a logit means nothing",
        )
        expect(
            torch.equal(found, right) or not torch.equal(found, chances >= p * chances.max()),
            "every row has its own likeliest code; amax(-1)",
        )
        expect(
            torch.equal(found, right) or not torch.equal(found, ~right),
            "you kept the unlikely ones",
        )
        expect(torch.equal(found, right), f"with p = {p} other codes stay")
        expect(bool((answer[~right] == -torch.inf).all()), "what goes becomes −inf")
    even = torch.zeros(1, 5)
    expect(
        bool(keep_min_p(even, 1.0).isfinite().all()),
        "with p = 1 what is as likely as the likeliest stays: at least, not more than",
    )
    return "sure: few codes; unsure: many, and no knob was turned"
