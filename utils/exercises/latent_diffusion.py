"""Checks of the exercises in lesson 14."""

import gc
import weakref

import torch
import torch.nn.functional as F

from utils.exercises import draws, exercise, expect, judge, number, tensor


@exercise("the factor")
def check_scale_factor(scale_factor):
    for seed, sizes in enumerate(((4,), (3, 5), (2, 6, 4))):
        batches = [
            (1.5 + seed) * draws(n, 2, 3, 3, seed=10 * seed + i) + 2 + 3 * i
            for i, n in enumerate(sizes)
        ]
        seen, held = [], []

        def one_by_one(batches=batches, seen=seen, held=held):
            for batch in batches:
                gc.collect(1)  # the young alone: a notebook holds millions of others
                held.append(sum(other() is not None for other in seen))
                batch = batch.clone()
                seen.append(weakref.ref(batch))
                yield batch

        factor = number(scale_factor(one_by_one()))
        numbers = torch.cat(batches).double()
        each = torch.stack([batch.double().var(correction=0) for batch in batches])
        spread = numbers.std(correction=0)
        judge(
            factor,
            1 / spread,
            {
                "that is the deviation; return one over it": spread,
                "that is one over the variance; take its root": 1 / spread**2,
                "take the square of the mean off the mean of the squares": (
                    numbers.square().mean() ** -0.5
                ),
                "that is the factor of one batch; look at all": each[0] ** -0.5,
                "that is the factor of the last batch; look at all": each[-1] ** -0.5,
                "a mean over batches misses how far apart they lie": each.mean() ** -0.5,
                "the mean over batches misses how far apart they lie": (
                    1 / each.sqrt().mean()
                ),
            },
            "with this factor the variance of all numbers is not 1",
            1e-2,  # some divide by one less
        )
        expect(max(held) < 2, "earlier batches are still held; keep only sums of them")
    return "times this, all latents together have variance 1"


@exercise("two wishes and a dislike")
def check_weighed(weighed):
    for seed, weights in enumerate(([3.0], [1.5, -1.0], [2.0, 0.0, 0.5])):
        shape = (2 + seed, 3, 4, 4)
        free = draws(*shape, seed=seed)
        answers = [draws(*shape, seed=seed + 9 * (i + 1)) for i in range(len(weights))]
        seen = weighed(free.clone(), [answer.clone() for answer in answers], list(weights))
        away = [answer - free for answer in answers]
        pairs = list(zip(weights, away, strict=True))
        right = free + sum(w * a for w, a in pairs)
        in_turn = free
        for weight, answer in zip(weights, answers, strict=True):
            in_turn = in_turn + weight * (answer - in_turn)
        judge(
            tensor(seen, shape),
            right,
            {
                "add differences from `free`, not the answers": (
                    free + sum(w * a for w, a in zip(weights, answers, strict=True))
                ),
                "that leaves `free` out; begin at it": right - free,
                "a weight of 1 must give the answer itself; you went one more": right + sum(away),
                "that goes the other way": 2 * free - right,
                "each difference is from `free`, not from what the caption before it gave": in_turn,
                "a sum of differences is asked, not their mean": (
                    free + (right - free) / len(weights)
                ),
                "a negative weight leads away; keep its sign": (
                    free + sum(abs(w) * a for w, a in pairs)
                ),
                "that is the first caption alone; add the others": free + weights[0] * away[0],
            },
            f"with the weights {weights} it is another answer",
        )
    return "as many wishes as you like, from one start"


@exercise("what may surely change")
def check_strict_mask(strict_mask):
    for seed, (factor, places) in enumerate(((2, 3), (4, 2), (8, 3), (1, 4))):
        side = places * factor
        mask = (draws(2 + seed, 1, side, side, seed=seed) > -0.5).float()
        mask[0], mask[1] = 1, 0
        mask[1, 0, :factor] = 1
        mask[1, 0, factor - 1, factor - 1] = 0  # a place that lacks its last pixel
        mask[1, 0, 0, factor] = 0  # one that lacks its first
        mask[1, 0, 2 * factor - 1, factor - 1] = 1  # one that has its last alone
        seen = tensor(strict_mask(mask.clone(), factor), (len(mask), 1, places, places))
        judge(
            seen.float(),
            -F.max_pool2d(-mask, factor),
            {
                "that is a share; give 1 only if all pixels are 1": F.avg_pool2d(mask, factor),
                "more than half is not all": F.avg_pool2d(mask, factor).round(),
                "that looks at one pixel of each place; look at all": (
                    mask[:, :, ::factor, ::factor]
                ),
                "all pixels must be 1, not any of them": F.max_pool2d(mask, factor),
                "that is minus the mask; turn the sign back": F.max_pool2d(-mask, factor),
                "that is 1 where not all may change; turn it round": (
                    1 + F.max_pool2d(-mask, factor)
                ),
            },
            f"with a factor of {factor} a place is wrong",
        )
    return "only where all pixels may change, the latent may"
