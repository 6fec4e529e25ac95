"""Checks of the exercises in lesson 11."""

import torch

from utils.exercises import close, draws, exercise, expect, tensor


@exercise("several captions at once")
def check_several(several):
    for seed, weights in enumerate(([2.0], [1.5, -1.0], [0.5, 3.0, 0.0], [])):
        shape = (2 + seed, 3, 4, 5)
        free = draws(*shape, seed=seed)
        asked = [draws(*shape, seed=10 * seed + i + 1) for i in range(len(weights))]
        seen = tensor(several(free, list(asked), list(weights)), shape)
        steps = [w * (a - free) for a, w in zip(asked, weights, strict=True)]
        right = free + sum(steps)
        if weights and weights != [0.5, 3.0, 0.0]:
            summed = sum(w * a for a, w in zip(asked, weights, strict=True))
            expect(not close(seen, summed), "that is a sum of answers; go along the differences")
            expect(not close(seen, right - free), "you return the way; start it at `free`")
            expect(
                not close(seen, free + summed), "weight the *difference* from `free`, asked − free"
            )
        if len(weights) > 1:
            mean = free + sum(steps) / len(steps)
            expect(not close(seen, mean), "you averaged the differences; add them up")
            walked = free
            for a, w in zip(asked, weights, strict=True):
                walked = walked + w * (a - walked)
            expect(not close(seen, walked), "each difference starts at `free`, not at the last")
        if -1.0 in weights:
            positive = free + sum(abs(w) * (a - free) for a, w in zip(asked, weights, strict=True))
            expect(not close(seen, positive), "a negative weight walks away")
        expect(close(seen, right), f"with {len(weights)} captions it is not free + Σ w·(a − free)")
    return "one caption pulls, another pushes"


@exercise("not so glaring")
def check_rescaled(rescaled):
    for seed, share in enumerate((0.7, 1.0, 0.0, 0.25)):
        shape = (3 + seed, 3, 6, 4)
        sizes = torch.linspace(1.5, 4, shape[0]).view(-1, 1, 1, 1)
        guided = sizes * draws(*shape, seed=seed) + 0.5
        asked = draws(*shape, seed=seed + 20)
        seen = tensor(rescaled(guided, asked, share), shape)
        ratio = asked.flatten(1).std(1) / guided.flatten(1).std(1)
        whole = guided * ratio.view(-1, 1, 1, 1)
        right = share * whole + (1 - share) * guided
        if share not in (0.0, 1.0):
            other = (1 - share) * whole + share * guided
            expect(not close(seen, other), "the shares are turned: `share` is of the rescaled one")
            expect(not close(seen, whole), "mix it with the unscaled answer")
        if share:
            at_once = guided * asked.std() / guided.std()
            at_once = share * at_once + (1 - share) * guided
            expect(not close(seen, at_once), "each picture has a deviation of its own")
            turned = share * guided / ratio.view(-1, 1, 1, 1) + (1 - share) * guided
            expect(not close(seen, turned), "the ratio is turned: wanted over found")
            channels = asked.std((2, 3), keepdim=True) / guided.std((2, 3), keepdim=True)
            channels = share * channels * guided + (1 - share) * guided
            expect(not close(seen, channels), "one deviation a picture, not one a channel")
            squared = share * guided * ratio.square().view(-1, 1, 1, 1) + (1 - share) * guided
            expect(not close(seen, squared), "these are variances; take their roots")
        expect(close(seen, right), f"with a share of {share:g} it is another mixture")
    return "as clear, and no louder than the answer to the caption"


@exercise("learn from the last steps")
def check_next_slope(next_slope):
    for count in (1, 2, 3, 4):
        for seed, shape in enumerate([(2, 3), (1,), (2, 3, 4, 4)]):
            powers = draws(count, *shape, seed=seed + 5 * count)  # of the polynomial
            places = torch.arange(1.0 - count, 1.0)  # the newest at 0
            slopes = [sum(c * p**k for k, c in enumerate(powers)) for p in places]
            seen = tensor(next_slope(list(slopes)), shape)
            right = sum(c / (k + 1) for k, c in enumerate(powers))  # its mean over 0 … 1
            if count > 1:
                turned = sum(c * (-1) ** k / (k + 1) for k, c in enumerate(powers))
                expect(not close(seen, slopes[-1]), "that is the newest one alone; use the others")
                expect(not close(seen, turned), "that is the mean over the step *behind* you")
                expect(not close(seen, sum(powers)), "that is the slope at the end of the step; "
                       "its mean over the step is wanted")  # fmt: skip
                expect(not close(seen, sum(slopes) / count), "a plain mean looks back; look ahead")
                first = 1.5 * slopes[0] - 0.5 * slopes[1]
                expect(
                    count > 2 or not close(seen, first), "the newest slope stands last, not first"
                )
            if count > 2:
                line = 1.5 * slopes[-1] - 0.5 * slopes[-2]
                expect(not close(seen, line), "that is a line through two; there are more")
            expect(close(seen, right, 1e-3), f"with {count} slopes a polynomial comes out wrong")
    return "four looks back, one step ahead"
