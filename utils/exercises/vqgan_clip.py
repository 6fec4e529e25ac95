"""Checks of the exercises in lesson 09."""

import math
import random

import torch

from utils.exercises import close, draws, exercise, expect, number, tensor


@exercise("enough is enough")
def check_with_stop(with_stop):
    for seed, (count, weight, stop) in enumerate(
        [(6, 2.0, 1.1), (9, -0.7, -0.6), (5, 1.0, 0.5), (20, 0.3, 0.2), (13, -1.5, -1.0)]
    ):
        distances = draws(count, seed=seed).abs().requires_grad_()
        seen = tensor(with_stop(distances, weight, stop))
        said = f"for weight {weight} and stop {stop}"
        expect(seen.ndim == 0, f"one number for all cuts; your shape is {tuple(seen.shape)}")
        values = weight * distances.detach()
        expect(not close(seen, values.sum()), "this is the sum over the cuts; take the mean")
        expect(
            not close(seen, values.clamp(min=stop).mean()),
            f"{said} the value is cut off as well; only the gradient stops",
        )
        past = values > stop
        kept = torch.where(past, values, torch.zeros_like(values)).mean()
        expect(
            not close(seen, kept) and not close(seen, values[past].mean()),
            f"{said} what has stopped is left out of the value; it stays in, without a gradient",
        )
        expect(
            not close(seen, distances.detach().mean()) or weight == 1,
            f"{said} the weight is missing",
        )
        expect(close(seen, values.mean()), f"{said} the value is not the mean of weight · distance")
        expect(seen.requires_grad, "no gradient flows back to the distances")
        (slope,) = torch.autograd.grad(seen, distances, allow_unused=True)
        expect(slope is not None, "no gradient flows back to the distances")
        right = weight / count * past.float()
        expect(
            bool(past.all()) or not close(slope, torch.full_like(slope, weight / count)),
            f"{said} every distance still pulls, also those below the stop",
        )
        expect(
            not close(slope, weight / count * (~past).float()),
            f"{said} it is the other way round: those *above* the stop pull",
        )
        alone = weight / count * (distances.detach() > stop).float()
        expect(
            close(alone, right) or not close(slope, alone),
            f"{said} you compare the distance; compare weight · distance",
        )
        expect(close(slope, right), f"{said} the gradient is {slope.tolist()}")
    return "a wish can be fulfilled now, a negative one, too"


@exercise("smooth, please")
def check_total_variation(total_variation):
    for seed, (batch, height, width) in enumerate([(2, 5, 7), (3, 8, 4), (1, 6, 6), (4, 2, 9)]):
        pictures = draws(batch, 3, height, width, seed=seed).requires_grad_()
        seen = tensor(total_variation(pictures))
        expect(
            seen.shape == (batch,),
            f"for {batch} pictures the shape is {tuple(seen.shape)}; each has its own number",
        )
        x = pictures.detach()
        right, down = x.diff(dim=3), x.diff(dim=2)

        def both(change, how=lambda d: d.mean((1, 2, 3)), right=right, down=down):
            return how(change(right)) + how(change(down))

        expect(not close(seen, both(torch.abs)), "these are absolute differences; square them")
        expect(
            not close(seen, both(torch.square, lambda d: d.sum((1, 2, 3)))),
            "these are sums over the pixels; take means",
        )
        one = [close(seen, d.square().mean((1, 2, 3))) for d in (right, down)]
        expect(not any(one), "one direction is missing")
        round_ = both(torch.square, right=x - x.roll(1, 3), down=x - x.roll(1, 2))
        expect(not close(seen, round_), "it wraps round: the last column has no neighbour")
        expect(close(seen, both(torch.square)), f"for {(batch, 3, height, width)} it is wrong")
        expect(seen.requires_grad, "the value is right, but no gradient reaches the pictures")
    return "grain costs something now"


@exercise("cuts of the size you want")
def check_power_for(power_for):
    rng = random.Random(0)
    cases = [(0.5, 24, 64, 44), (0.25, 24, 64, 30), (0.9, 16, 128, 60), (0.3, 0, 10, 7)]
    for _ in range(4):
        least, side, most = sorted(rng.sample(range(8, 200), 3))
        cases.append((round(rng.uniform(0.1, 0.9), 2), least, most, side))
    for share, least, most, side in cases:
        seen = number(power_for(share, least, most, side))
        ratio = (side - least) / (most - least)
        right = math.log(ratio) / math.log(share)
        said = (
            f"for a share of {share} below {side}, sides {least} to {most}, you returned {seen:.3g}"
        )
        if close(seen, right):
            continue
        expect(not close(seen, 1 / right), f"{said}: the fraction is upside down")
        expect(
            not close(seen, math.log(side / most) / math.log(share)),
            f"{said}: sides begin at {least}, so take it away first",
        )
        expect(
            not close(seen, math.log(ratio) / math.log(1 - share)),
            f"{said}: that is the share of *larger* cuts",
        )
        expect(
            not close(seen, (most - least) / (side - least) - 1),
            f"{said}: with this power {side} is the mean, not the {share:.0%} mark",
        )
        expect(False, f"{said}; {share}^p should be {ratio:.3g}")
    return "now you can ask for sizes"


@exercise("keep the best")
def check_best_so_far(best_so_far):
    rng = random.Random(0)
    rows = [[0.1, 0.5, 0.3, 0.5, 0.9], [3.0, 2.0, 1.0], [-2.0, -1.0, -3.0]]
    rows += [[rng.randint(-9, 9) / 2 for _ in range(rng.randint(1, 12))] for _ in range(4)]
    for scores in rows:
        page, taken = torch.zeros(1, 3, 2, 2), []

        def frames(scores=scores, page=page, taken=taken):
            for turn, score in enumerate(scores):
                page.fill_(turn)  # as a loop does: the same memory again
                taken.append(turn)
                yield page, score

        made = best_so_far(frames())
        expect(hasattr(made, "__next__"), "it is no generator: use `yield`")
        for turn in range(len(scores)):
            pair = next(made, None)
            expect(pair is not None, f"it ends after {turn} of {len(scores)} pairs")
            expect(
                len(taken) == turn + 1,
                f"after {turn + 1} pairs it has read {len(taken)}; yield in each turn",
            )
            expect(
                isinstance(pair, tuple | list) and len(pair) == 2, "yield pairs (picture, score)"
            )
            best = max(scores[: turn + 1])
            least = min(scores[: turn + 1])
            expect(
                pair[1] == best or pair[1] != least or best == least,
                f"of {scores[: turn + 1]} you keep the lowest score",
            )
            expect(pair[1] == best, f"of {scores[: turn + 1]} the best is {best}, not {pair[1]}")
            first = scores.index(best)
            last = max(i for i in range(turn + 1) if scores[i] == best)
            which = int(pair[0].flatten()[0])
            expect(
                which == first or which != last or first == last,
                "of two with the same score the earlier stays",
            )
            expect(
                which == first,
                "the score is that of the best, the picture is not: it was changed in place since; "
                "keep a copy",
            )
        expect(next(made, None) is None, "it yields more pairs than it was given")
    return "whenever you stop, you have the best"
