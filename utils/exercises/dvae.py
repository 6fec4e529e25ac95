"""Checks of the exercises in lesson 06."""

import math
import random

import torch
import torch.nn.functional as F

from utils.exercises import close, draws, exercise, expect, judge, number, tensor


@exercise("several at once")
def check_draw_several(draw_several):
    answer = tensor(draw_several(draws(5, 7, seed=0), 3), (5, 3))
    expect(
        answer.dtype == torch.long,
        f"return the codes' numbers, int64; these are {answer.dtype}: the values, not the places",
    )
    rng = random.Random(0)
    sizes = [(200, 4, 4), (50, 9, 2)]
    sizes += [(rng.randint(20, 90), rng.randint(5, 12), rng.randint(1, 5)) for _ in range(4)]
    for seed, (n, codes, k) in enumerate(sizes):
        found = tensor(draw_several(2 * draws(n, codes, seed=seed), k), (n, k), torch.long)
        expect(
            0 <= found.min() and found.max() < codes,
            f"a code is out of range: with {codes} codes they are 0 to {codes - 1}",
        )
        twice = sum(len(row.unique()) < k for row in found)
        expect(not twice, f"{twice} of {n} rows hold a code twice; who was drawn is out")
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = (shares.log() + 1.7).expand(30_000, 4)
    found = draw_several(logits, 2)
    first, second = (torch.bincount(found[:, i], minlength=4) / len(found) for i in (0, 1))
    expect(first.max() < 1, "every row draws the same: add the noise before you choose")
    expect(
        not close(first, torch.full((4,), 0.25), 0.02),
        "the first code is any code, whatever the logits say",
    )
    expect(
        (first - shares).abs().max() < 0.02,
        f"the first code should be drawn with shares {shares.tolist()}, yours are "
        f"{[round(x, 2) for x in first.tolist()]}: is the noise −log of an exponential draw?",
    )
    # the second among those left: Σ over the first i ≠ j of p(i)·p(j)/(1 − p(i))
    pairs = shares[:, None] * shares / (1 - shares[:, None])
    right = (pairs - pairs.diag().diag()).sum(0)
    expect(
        (second - right).abs().max() < 0.02,
        "the first code is right, the second is not: it should be drawn from what is left, by "
        "the same logits",
    )
    return "one handful of noise draws them all"


@exercise("what a code tells")
def check_information(information):
    sure = torch.full((6, 4), -1e4)
    sure[torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 3])] = 0.0
    same = draws(1, 5, seed=0).expand(7, 5)
    found = number(information(draws(9, 6, seed=1)))
    expect(
        math.isfinite(found),
        f"you returned {found} for random logits; take log_softmax, not the log of a softmax",
    )
    found = number(information(same))
    uniform = math.log(5) - torch.distributions.Categorical(logits=same[0]).entropy().item()
    expect(
        not close(found, uniform, 1e-3) and not close(found, uniform / math.log(2), 1e-3),
        "when all places have the same distribution a code tells nothing; yours is the KL to the "
        "uniform one",
    )
    expect(abs(found) < 1e-3, f"when all places agree a code tells 0 bits; you found {found:.3f}")
    logits = 3 * draws(5, 3, seed=0)  # averaged, those below make 0/0
    q = logits.softmax(-1)
    wrong = (q * (q / logits.mean(0).softmax(-1)).log2()).sum(-1).mean().item()
    expect(
        not close(number(information(logits)), wrong, 1e-3),
        "you averaged the logits; average the shares",
    )
    found = number(information(sure))
    spread = torch.tensor([2, 2, 1, 1]) / 6
    right = -(spread * spread.log2()).sum().item()
    expect(not math.isnan(found), "you returned nan where a share is 0: 0·log 0 counts as 0 there")
    expect(
        not close(found, right * math.log(2), 1e-3),
        f"you returned {found:.3f} nats; a bit is ln 2 nats",
    )
    expect(not close(found, 6 * right, 1e-3), "this is the sum over the places; take their mean")
    for seed, (n, codes) in enumerate([(5, 3), (40, 12), (2, 30), (17, 2), (1, 6)]):
        logits = 3 * draws(n, codes, seed=seed)
        q = logits.softmax(-1).double()
        right = (q * (q / q.mean(0)).log2()).sum(-1).mean().item()
        found = number(information(logits))
        turned = (q.mean(0) * (q.mean(0) / q).log2()).sum(-1).mean().item()
        judge(
            found,
            right,
            {"the two are swapped: KL(q ‖ q̄) weighs with q, place by place": turned},
            f"{n} places of {codes} codes: {right:.4f} bits are right, you found {found:.4f}",
            1e-3,
        )
    return "bits about the picture, not bits spent"


@exercise("dice for colours")
def check_draw_colours(draw_colours):
    for seed, shape in enumerate([(40,), (2, 3, 4, 4), (1, 5)]):
        mu, log_b = 1.5 * draws(*shape, seed=seed), draws(*shape, seed=9 + seed) / 2 - 1
        u = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        answer = tensor(draw_colours(mu, log_b, u), shape)
        away = u - 0.5
        logit = mu - log_b.exp() * away.sign() * (-2 * away.abs()).log1p()
        right = ((logit.sigmoid() - 0.1) / 0.8).clamp(0, 1)
        expect(
            not close(answer, logit, 1e-3),
            "these are logits; two steps of `decode` are missing",
        )
        expect(
            not close(answer, logit.sigmoid(), 1e-3),
            "these lie in (0, 1), where pixels were mapped to; `unmap_pixels` takes them back",
        )
        expect(
            not close(answer, ((logit.sigmoid() - 0.1) / 0.8), 1e-3) or close(answer, right, 1e-3),
            "some colours lie outside [0, 1]; clamp them",
        )
        median = ((mu.sigmoid() - 0.1) / 0.8).clamp(0, 1)
        expect(not close(answer, median, 1e-3), "your draws do not depend on u")
        wide = mu - log_b * away.sign() * (-2 * away.abs()).log1p()
        expect(
            not close(answer, ((wide.sigmoid() - 0.1) / 0.8).clamp(0, 1), 1e-3),
            "log_b is ln b: exp makes b of it",
        )
        turned = (2 * mu - logit).sigmoid()
        expect(
            not close(answer, ((turned - 0.1) / 0.8).clamp(0, 1), 1e-3),
            "a larger u should give a lighter colour; yours gives a darker one",
        )
        expect(close(answer, right, 1e-3), "not unmap_pixels of the sigmoid of the formula")
    mu = torch.zeros(6, requires_grad=True)
    log_b = torch.full((6,), -1.0, requires_grad=True)
    answer = draw_colours(mu, log_b, torch.tensor([0.2, 0.4, 0.45, 0.55, 0.6, 0.8]))
    expect(answer.requires_grad, "no gradient passes; stay with torch, without detach or item")
    found = torch.autograd.grad(answer.sum(), (mu, log_b), allow_unused=True)
    expect(
        all(g is not None and g.abs().sum() > 0 for g in found),
        "the gradient must reach both mu and log_b",
    )
    return "the gradient passes the dice here, too"


@exercise("how far a code sees")
def check_receptive_field(receptive_field):
    found = number(receptive_field([(3, 1)]))
    expect(found == 3, f"one 3×3 convolution sees 3 pixels; you returned {found:g}")
    found = number(receptive_field([(3, 1), (3, 1)]))
    expect(found != 6, "two 3×3 convolutions see 5 pixels, not 6: they share the middle")
    expect(found == 5, f"two 3×3 convolutions see 5 pixels; you returned {found:g}")
    found = number(receptive_field([(3, 2)]))
    expect(found == 3, "a layer's own stride does not widen it, only those after it: (3, 2) sees 3")
    found = number(receptive_field([(2, 2), (3, 1)]))
    expect(found != 4, "after a stride of 2 a step aside is 2 pixels wide: 2 + 2·2 = 6")
    expect(found == 6, f"(2, 2) and then (3, 1) see 6 pixels; you returned {found:g}")
    for seed in range(4):
        dice = torch.Generator().manual_seed(seed)
        layers = [
            (
                int(torch.randint(1, 6, (), generator=dice)),
                int(torch.randint(1, 4, (), generator=dice)),
            )
            for _ in range(2 + seed)
        ]
        found = number(receptive_field(layers))
        expect(found == seen(layers), f"{layers} sees {seen(layers)} pixels, not {found:g}")
    block = [(3, 1), (3, 1), (3, 1), (1, 1)]  # openai/DALL-E, dall_e/encoder.py
    group = [*block, *block]
    encoder = [(7, 1), *group, (2, 2), *group, (2, 2), *group, (2, 2), *group, (1, 1)]
    found = number(receptive_field(encoder))
    expect(found == seen(encoder), f"OpenAI's encoder sees {seen(encoder)} pixels, not {found:g}")
    return f"a code of OpenAI's dVAE sees {found:g}×{found:g} of 256×256 pixels"


def seen(layers: list[tuple[int, int]]) -> int:
    """The same by experiment: which inputs does one output of such convolutions depend on?"""
    size = 600
    signal = torch.zeros(1, 1, size, dtype=torch.float64, requires_grad=True)
    x = signal
    for kernel, stride in layers:
        x = F.conv1d(x, torch.ones(1, 1, kernel, dtype=torch.float64) / kernel, stride=stride)
    (slope,) = torch.autograd.grad(x[0, 0, x.shape[-1] // 2], signal)
    places = slope[0, 0].nonzero().flatten()  # a stride above a kernel leaves gaps
    return int(places[-1] - places[0] + 1)
