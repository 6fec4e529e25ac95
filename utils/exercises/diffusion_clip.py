"""Checks of the exercises in lesson 13."""

import torch
import torch.nn.functional as F

from utils.exercises import close, draws, exercise, expect, several, tensor


@exercise("two wishes in one direction")
def check_combined(combined):
    for seed, weights in enumerate(([1.0], [2.0, 1.0], [0.5, -1.5], [1.0, 0.0, 3.0])):
        width = 4 + 3 * seed
        sizes = [0.3 + 2 * i for i in range(len(weights))]
        given = [s * draws(width, seed=9 * seed + i) for i, s in enumerate(sizes)]
        seen = tensor(combined([d.clone() for d in given], list(weights)), (width,))
        units = [F.normalize(d, dim=0) for d in given]
        total = sum(w * u for u, w in zip(units, weights, strict=True))
        if len(weights) > 1:
            expect(not close(seen, total), "make the sum, too, as long as 1")
            expect(not close(seen, total / len(weights)), "that is a mean; its length is not 1")
            raw = F.normalize(sum(w * d for d, w in zip(given, weights, strict=True)), dim=0)
            expect(not close(seen, raw), "the longer one wins; make each of length 1 first")
            plain = F.normalize(sum(units), dim=0)
            expect(not close(seen, plain), "the weights do not count")
        if min(weights) < 0:
            same = sum(abs(w) * u for u, w in zip(units, weights, strict=True))
            expect(not close(seen, F.normalize(same, dim=0)), "a negative weight turns it round")
        expect(close(seen, F.normalize(total, dim=0)), f"with weights {weights} it is another one")
    return "several wishes, one direction of length 1"


@exercise("how hard the −log pulls")
def check_pulls(pulls):
    for seed, count in enumerate((1, 5, 12)):
        cosine = (2 * draws(count, seed=seed).sigmoid() - 1) * 0.99
        found = pulls(cosine.clone())
        found = [*found] if getattr(found, "ndim", 0) == 2 else found  # stacked does as well
        plain, log = several(found, 2, "return two slopes", lambda x, _: tensor(x))
        for slope in (plain, log):
            tensor(slope, (count,))
        right = 1 / (1 + cosine)
        expect(close(plain, torch.ones(count)), "the size of the slope of 1 − cos is 1 everywhere")
        expect(not close(log, -right), "its size is asked for, without a sign")
        expect(not close(log, 2 * right), "the halves cancel: the inner slope is ½, not 1")
        expect(not close(log, right / 2), "the halves cancel: 1/u with u = (1 + cos)/2")
        expect(not close(log, 1 / (1 - cosine)), "that is endless at cos = 1, where all is well")
        expect(not close(log, 1 / (2 - cosine)), "1/(2 − L) is meant with L = 1 − cos")
        expect(not close(log, -((1 + cosine) / 2).log()), "that is the loss; its slope is asked")
        expect(close(log, right), "the slope of the −log form is another one")
    return "where a picture goes the wrong way, the −log pulls hardest"


@exercise("checkpointing by hand")
def check_slope_by_parts(slope_by_parts):
    for seed, count in enumerate((2, 5, 1)):
        shape = (2, 3 + seed)
        mats = [draws(shape[1], shape[1], seed=20 * seed + i) / 2 for i in range(count)]
        weight, calls = draws(*shape, seed=seed + 90), []

        def step_of(number, mats=mats, calls=calls):
            def step(value):
                calls.append((number, torch.is_grad_enabled()))
                return (value @ mats[number]).tanh() + value

            return step

        def loss(x, weight=weight):
            return (weight * x.square()).sum()

        steps = [step_of(number) for number in range(count)]
        x = draws(*shape, seed=seed + 50)
        whole = x.clone().requires_grad_()
        out = whole
        for mat in mats:
            out = (out @ mat).tanh() + out
        (right,) = torch.autograd.grad(loss(out), whole)
        seen = tensor(slope_by_parts(list(steps), x.clone(), loss), shape)
        graphs = [number for number, on in calls if on]
        expect(
            count == 1 or len(graphs) < len(calls) or graphs != list(range(count)),
            "that holds all steps at once; go through without gradients first",
        )
        expect(close(seen, right, 1e-4), f"with {count} steps it is not the gradient by x")
        expect(
            sorted(graphs) == list(range(count)) and graphs == sorted(graphs, reverse=True),
            "each step is to be run with gradients once, on the way back, the last one first",
        )
        first = [number for number, on in calls if not on]
        expect(
            first[:count] == list(range(count)) and len(first) <= count,
            "go through all steps once without gradients, and keep each x",
        )
    return "a gradient through every step in the memory of one"
