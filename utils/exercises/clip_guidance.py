"""Checks of the exercises in lesson 12."""

import torch

from utils.exercises import close, draws, exercise, expect, several, tensor, whole


@exercise("a schedule as it is typed")
def check_schedule(schedule):
    right = {
        "[12]*400+[4]*600": [12] * 400 + [4] * 600,
        "[2]*3+[5]*1": [2, 2, 2, 5],
        "[7]*2": [7, 7],
        " [1] * 2 + [0]*3 ": [1, 1, 0, 0, 0],
        "[10]*1+[9]*1+[8]*2": [10, 9, 8, 8],
    }
    for text, wanted in right.items():
        what = f"{text!r} stands for {len(wanted)} whole numbers: repeat each as often as it says"
        seen = several(schedule(text), len(wanted), what, whole)
        expect(seen == wanted, f"for {text!r} you returned {seen!r:.60}, not {wanted!r:.60}")
    for text in (
        "", "[1]*2+", "+[1]*2", "[1]2", "1*2", "[1]*-2", "[1.5]*2", "[1]*2*3", "[1]*2;[3]*4",
        "[x]*2", "[1]*2+print(1)", "[1]*2 [3]*4", "[[1]]*2", "len('ab')*[1]",
    ):  # fmt: skip
        try:
            seen = schedule(text)
        except ValueError:
            continue
        except Exception as error:
            expect(False, f"for {text!r} raise ValueError; yours was {type(error).__name__}")
        expect(False, f"{text!r} is no schedule, and you returned {seen!r:.60}")
    return "whatever is pasted, nothing is run"


@exercise("two alike halves")
def check_symmetry(symmetry):
    for seed, (batch, height, width) in enumerate([(2, 4, 6), (3, 5, 5), (1, 8, 2)]):
        x = draws(batch, 3, height, width, seed=seed).requires_grad_()
        for upto, t in ((400, 900), (400, 400)):
            seen = tensor(symmetry(x, upto, t))
            said = f"at t = {t}, until {upto},"
            expect(
                seen.shape == (batch,),
                f"{said} the shape is {tuple(seen.shape)}; each of {batch} has its own number",
            )
            apart = (x - x.flip(3)).square().mean((1, 2, 3))
            down = (x - x.flip(2)).square().mean((1, 2, 3))
            expect(
                close(apart, down) or not close(seen, down),
                "top and bottom are changed; the mirror image changes left and right",
            )
            expect(
                not close(seen, (x - x.flip(3)).abs().mean((1, 2, 3))),
                "these are absolute differences; square them",
            )
            expect(
                not close(seen, (x - x.flip(3)).square().sum((1, 2, 3))),
                "these are sums over the pixels; take means",
            )
            expect(
                t != upto or bool(seen.detach().any()),
                f"{said} it should still count: t is at least {upto}",
            )
            expect(bool(seen.detach().any()), f"{said} it is zero; the walk begins with large t")
            expect(close(seen, apart), f"{said} it is {seen.tolist()}")
            expect(seen.requires_grad, "the value is right, but no gradient reaches the pictures")
        late = tensor(symmetry(x, 400, 399))
        expect(
            late.shape == (batch,), f"late in the walk the shape is {tuple(late.shape)}; give zeros"
        )
        expect(not late.detach().any(), "at t = 399, until 400, it should be zeros")
    return "now ask for a butterfly"


@exercise("without the way back through the U-Net")
def check_cheap_slope(cheap_slope):
    for seed, (batch, side) in enumerate([(3, 4), (2, 5), (4, 3)]):
        x, eps = draws(batch, 3, side, side, seed=seed), draws(batch, 3, side, side, seed=seed + 9)
        signal = 0.05 + 0.9 * torch.rand(batch, generator=torch.Generator().manual_seed(seed))
        left = signal.view(-1, 1, 1, 1)
        x.requires_grad_()
        x0 = (x - (1 - left).sqrt() * eps) / left.sqrt()
        loss = x0.pow(3).sum()
        (slope0,) = torch.autograd.grad(loss, x0, retain_graph=True)
        (right,) = torch.autograd.grad(loss, x)
        seen = tensor(cheap_slope(slope0, signal))
        expect(
            seen.shape == slope0.shape,
            f"the shape is {tuple(seen.shape)}, not {tuple(slope0.shape)}",
        )
        expect(not close(seen, slope0), "this is the slope by x̂₀; x̂₀ moves by 1/√ᾱ when x does")
        expect(not close(seen, slope0 * left.sqrt()), "it is the other way round: x̂₀ is x over √ᾱ")
        expect(not close(seen, slope0 / left), "x is divided by √ᾱ, not by ᾱ")
        expect(
            not close(seen, -slope0 * ((1 - left) / left).sqrt()),
            "this is the slope by ε̂; it is held fixed",
        )
        expect(close(seen, right), f"for ᾱ = {signal.tolist()} it is not the slope by x")
    return "half the time, and often nearly as good"
