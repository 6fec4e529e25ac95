"""Checks of the exercises in lesson 15."""

from itertools import combinations

import torch
import torch.nn.functional as F

from utils.exercises import draws, exercise, expect, judge, number, tensor, whole


@exercise("the better of n")
def check_mean_best(mean_best):
    for seed, (rows, count, n) in enumerate(((3, 4, 2), (2, 5, 3), (4, 3, 1), (3, 4, 4))):
        scores = draws(rows, count, seed=seed)
        choices = [list(columns) for columns in combinations(range(count), n)]
        best = torch.stack([scores[:, columns].amax(1) for columns in choices])
        judge(
            number(mean_best(scores.clone(), n)),
            best.mean(),
            {
                "those are the first n alone; take all choices of n columns": (
                    scores[:, :n].amax(1).mean()
                ),
                "the largest of all candidates is the best of C, not of n": scores.amax(1).mean(),
                "that is the mean score, not that of the best": scores.mean(),
                "the worst of n; take the largest": torch.stack(
                    [scores[:, columns].amin(1) for columns in choices]
                ).mean(),
                "the mean over the rows, not their sum": best.mean(0).sum(),
                "a choice has n different columns": torch.stack(
                    [
                        scores[:, list(columns)].amax(1)
                        for columns in torch.cartesian_prod(*[torch.arange(count)] * n)
                        .view(-1, n)
                        .tolist()
                    ]
                ).mean(),
            },
            f"the best {n} of {count} have another mean",
        )
    return "the best of n, and nothing was drawn again"


@exercise("the middle of many")
def check_middle(middle):
    for seed, (count, dim) in enumerate(((2, 2), (3, 5), (5, 8))):
        vectors = F.normalize(draws(dim, seed=seed) + 0.4 * draws(count, dim, seed=seed + 9), dim=1)
        seen = tensor(middle(vectors.clone(), 30), (dim,))
        expect(abs(seen.norm().item() - 1) < 1e-3, "the middle has length 1, too")
        judge(
            seen,
            spherical_mean(vectors),
            {
                "that is the first vector; go along the mean of the arrows": vectors[0],
                "that is the middle of straight lines; make each arrow as long as its angle": (
                    F.normalize(vectors.mean(0), dim=0)
                ),
                "that goes away from the others": -spherical_mean(vectors),
            },
            f"for {count} vectors the arrows from there do not cancel out",
            2e-3,
        )
    return "the arrows to all of them cancel out"


def spherical_mean(vectors: torch.Tensor, steps: int = 60) -> torch.Tensor:
    m = vectors.double()[0]
    for _ in range(steps):
        dots = (vectors.double() @ m).clamp(-1, 1)
        arrows = F.normalize(vectors.double() - dots[:, None] * m, dim=1) * dots.acos()[:, None]
        a = arrows.mean(0)
        m = F.normalize(a.norm().cos() * m + a.norm().sin() * F.normalize(a, dim=0), dim=0)
    return m.float()


@exercise("what a unit vector hides")
def check_lost_at(lost_at):
    def first(size: float, signal: torch.Tensor) -> int:
        return int(((1 - signal).sqrt() > signal.sqrt() * size).int().argmax())

    for seed, (dim, times) in enumerate(((256, 1000), (64, 300), (1024, 500))):
        steps = torch.rand(times, generator=torch.Generator().manual_seed(seed)).double()
        signal = 1 - 10 ** (8 * steps.cumsum(0) / steps.sum() - 8.001)
        for scaled in (True, False):
            size = 1.0 if scaled else dim**-0.5
            judge(
                whole(lost_at(dim, scaled, signal.clone())),
                first(size, signal),
                {
                    "scaled, a number has the size 1, else 1/√dim; you have it turned round": (
                        first(dim**-0.5 if scaled else 1.0, signal)
                    ),
                    "unscaled, a number has the size 1/√dim, not 1/dim": first(
                        1.0 if scaled else 1 / dim, signal
                    ),
                    "that is where the signal is larger": int(
                        ((1 - signal).sqrt() < signal.sqrt() * size).int().argmax()
                    ),
                    "compare √(1 − ᾱ) with √ᾱ; the roots are missing": int(
                        (1 - signal > signal * size).int().argmax()
                    ),
                    "times begin at 0": first(size, signal) + 1,
                },
                f"with {dim} numbers{', scaled,' * scaled} noise is larger at another time",
                1e-9,
            )
    return "unscaled, the vector is gone almost at once"
