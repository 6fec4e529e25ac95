"""Checks of the exercises in lesson 05."""

import math
import random

import torch

from utils.bricks.vq_vae import nearest_code
from utils.exercises import close, draws, exercise, expect, judge, number, tensor


@exercise("dead codes")
def check_perplexity(perplexity):
    equal = torch.tensor([0, 1, 2, 3] * 5)
    found = number(perplexity(equal, 4))
    expect(
        not close(found, math.log(4), 1e-3),
        f"for 4 codes used equally you returned {found:.2f}; that is the entropy in nats. One "
        "step is missing",
    )
    expect(
        not close(found, 2.0, 1e-3),
        "for 4 codes used equally you returned 2.00; that is the entropy in bits. One step is "
        "missing",
    )
    expect(
        not close(found, 2 ** math.log(4), 1e-3) and not close(found, math.exp(2), 1e-3),
        f"for 4 codes used equally you returned {found:.2f}: an entropy in bits goes with 2 to "
        "its power, one in nats with e",
    )
    expect(close(found, 4.0, 1e-3), f"4 codes used equally give 4; you returned {found:.3g}")
    alone = number(perplexity(torch.zeros(10, dtype=torch.long), 4))
    expect(
        not math.isnan(alone),
        "with one code in use you returned nan: 0·log 0 counts as 0; leave unused codes out",
    )
    expect(close(alone, 1.0, 1e-3), f"one code alone gives 1; you returned {alone:.3g}")
    uneven = torch.tensor([0, 0, 0, 1])
    right = 2 ** -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    found = number(perplexity(uneven, 8))
    expect(
        not close(found, 2.0, 1e-3),
        "for three 0s and one 1 you returned 2: codes in use, however unevenly; weigh them",
    )
    expect(close(found, right, 1e-3), f"three 0s and one 1 give {right:.3f}, not {found:.3f}")
    rng = random.Random(0)
    for seed in range(6):
        codes, shape = rng.randint(2, 40), [rng.randint(1, 9) for _ in range(1 + seed % 3)]
        grid = torch.randint(codes, shape, generator=torch.Generator().manual_seed(seed))
        shares = torch.bincount(grid.flatten(), minlength=codes) / grid.numel()
        kept = shares[shares > 0]
        right = 2 ** -(kept * kept.log2()).sum().item()
        found = number(perplexity(grid, codes))
        expect(close(found, right, 1e-3), f"a grid {tuple(grid.shape)} gives {right:.3f}")
    return "the codes that a codebook is worth"


@exercise("say it more exactly")
def check_residual_codes(residual_codes):
    for seed, (n, d, sizes) in enumerate(
        [(7, 2, (4, 4)), (5, 3, (3, 8, 5)), (9, 4, (6,)), (20, 5, (2, 9, 4, 3))]
    ):
        z = draws(n, d, seed=seed)
        books = [draws(k, d, seed=10 * seed + i) / 2**i for i, k in enumerate(sizes)]
        answer = tensor(residual_codes(z, books))
        expect(
            tuple(answer.shape) != (len(sizes), n) or n == len(sizes),
            f"the shape is {tuple(answer.shape)}: one column a codebook, not one row",
        )
        answer = tensor(answer, (n, len(sizes)), torch.long)
        rest, right, alone, added = z, [], [], z
        for book in books:
            chosen = nearest_code(rest, book)
            alone.append(nearest_code(z, book))
            right.append(chosen)
            rest = rest - book[chosen]
            added = added + book[chosen]
        right, alone = torch.stack(right, 1), torch.stack(alone, 1)
        expect(
            torch.equal(right, alone) or not torch.equal(answer, alone),
            "every codebook codes z itself; from the second on they code what is still missing",
        )
        expect(
            torch.equal(answer[:, 0], right[:, 0]), "the first column is not the nearest code of z"
        )
        if len(books) > 1:
            first = books[0][right[:, 0]]
            turned = nearest_code(z + first, books[1]), nearest_code(first - z, books[1])
            for wrong, said in zip(
                turned,
                ("the rest grows: the chosen vector is taken away, not added",
                 "the rest is z − chosen, not chosen − z"),
                strict=True,
            ):  # fmt: skip
                same = torch.equal(answer[:, 1], wrong) and not torch.equal(right[:, 1], wrong)
                expect(not same, said)
        expect(torch.equal(answer, right), "from the second codebook on, code what is missing")
    return "two small codebooks of 256 say as much as one of 65,536"


@exercise("a grid instead of a codebook")
def check_fsq(fsq):
    z = torch.tensor([0.05, 0.3, -0.4, 2.0, -3.0], requires_grad=True)
    answer = tensor(fsq(z, 5), z.shape)
    grid = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    off = (answer.detach().unsqueeze(-1) - grid).abs().amin(-1)
    expect(
        bool((answer.detach().abs() <= 1).all()),
        "a value lies outside of −1 to 1: tanh comes before the rounding",
    )
    expect(
        bool((off < 1e-5).all()),
        f"5 levels are −1, −0.5, 0, 0.5, 1; you returned {answer.detach().tolist()}",
    )
    for seed, levels in enumerate((3, 5, 9, 7, 15)):
        z = (2 * draws(40, 3 + seed, seed=seed)).requires_grad_()
        answer = tensor(fsq(z, levels), z.shape)
        half = (levels - 1) / 2
        right = (z.detach().tanh() * half).round() / half
        clipped = (z.detach().clamp(-1, 1) * half).round() / half
        expect(
            torch.equal(right, clipped) or not close(answer, clipped),
            "you cut z at ±1; squash it with tanh",
        )
        expect(close(answer, right), f"with {levels} levels the nearest values are others")
        expect(answer.requires_grad, "no gradient reaches z: detach the rounding alone")
        (slope,) = torch.autograd.grad(answer.sum(), z, allow_unused=True)
        expect(slope is not None, "no gradient reaches z: detach the rounding alone")
        expect(
            bool((slope != 0).any()),
            "the gradient is 0: rounding has no slope. Forward the rounded, backward as if not",
        )
        expect(
            not close(slope, torch.ones_like(slope)),
            "the gradient jumps over tanh as well; only the rounding is skipped",
        )
        expect(close(slope, 1 - z.detach().tanh().square()), "the gradient is that of tanh")
    return "no codebook, no dead codes"


@exercise("between two clouds")
def check_kl(kl):
    for seed, (b, d) in enumerate([(3, 2), (1, 5), (4, 3), (2, 9), (7, 1)]):
        m1, v1, m2, v2 = (draws(b, d, seed=4 * seed + i) for i in range(4))
        answer = tensor(kl(m1, v1, m2, v2))
        expect(
            tuple(answer.shape) == (b,),
            f"the shape is {tuple(answer.shape)}, not {(b,)}: sum over the numbers of each row",
        )

        def exact(m1, v1, m2, v2):
            return (v2 - v1 + (v1 - v2).exp() + (m1 - m2).square() / v2.exp() - 1).sum(1) / 2

        right = exact(m1, v1, m2, v2)
        judge(
            answer,
            right,
            {
                "this is the mean over the numbers; sum them": right / d,
                "a factor of ½ is missing": 2 * right,
                "this is KL(second ‖ first): the two have changed places": exact(m2, v2, m1, v1),
                "the second Gaussian is taken as standard; use it": exact(m1, v1, 0 * m2, 0 * v2),
                "a log-variance is log σ², not log σ: exp of it is σ²": (
                    exact(m1, 2 * v1, m2, 2 * v2)
                ),
            },
            "not ½(log σ₂² − log σ₁² + (σ₁² + (μ₁ − μ₂)²)/σ₂² − 1)",
        )
    same = kl(m1, v1, m1, v1)
    expect(close(same, torch.zeros(b)), "a cloud is at no distance from itself")
    return "and it is 0 only for equal clouds"
