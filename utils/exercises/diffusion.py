"""Checks of the exercises in lesson 10."""

import torch
from torch import Tensor

from utils.bricks.diffusion import add_noise, target
from utils.exercises import close, draws, exercise, expect, tensor


def levels(count: int, seed: int) -> Tensor:
    """Shares of signal strictly between 0 and 1, (count,)."""
    return 0.02 + 0.96 * torch.rand(count, generator=torch.Generator().manual_seed(seed))


@exercise("a schedule for larger pictures")
def check_shifted(shifted):
    for seed, scale in enumerate((2.0, 1.0, 4.0, 0.5)):
        signal = levels(3 + 5 * seed, seed)
        seen = tensor(shifted(signal, scale), signal.shape)
        snr = signal / (1 - signal)
        wrong = {
            snr / scale**2: "this is the ratio of signal to noise; turn it into ᾱ again",
            signal / scale**2: "you divided ᾱ; divide the ratio of signal to noise",
            snr / scale / (1 + snr / scale): "you divided by the scale; divide by its square",
            snr * scale**2 / (1 + snr * scale**2): "you multiplied; larger pictures need more "
            "noise, so less signal",
        }
        if scale != 1:
            for other, hint in wrong.items():
                expect(not close(seen, other), hint)
        right = snr / scale**2 / (1 + snr / scale**2)
        expect(close(seen, right), f"for a scale of {scale:g} the ratio of signal to noise is off")
    ends = tensor(shifted(torch.tensor([1.0, 0.0]), 3.0))
    expect(bool(ends.isfinite().all()), "at ᾱ = 1 you divide by 0; nothing but signal stays so")
    expect(close(ends, torch.tensor([1.0, 0.0])), "all signal stays all signal, and none, none")
    return "a picture twice as large gets a quarter of the ratio"


@exercise("from ε to v")
def check_as_velocity(as_velocity):
    for seed, shape in enumerate([(4, 3, 5, 5), (1, 3, 2, 6), (3, 1, 4, 4)]):
        x0, eps = draws(*shape, seed=seed), draws(*shape, seed=seed + 10)
        signal = levels(shape[0], seed)
        x = add_noise(x0, eps, signal)
        seen = tensor(as_velocity(eps, x, signal), x.shape)
        share = signal.view(-1, 1, 1, 1)
        root, rest = share.sqrt(), (1 - share).sqrt()
        right = target("v", x0, eps, signal)
        expect(not close(seen, -right), "the sign is turned: v is √ᾱ·ε minus √(1−ᾱ)·x₀")
        expect(not close(seen, x0), "this is the picture, x₀")
        expect(not close(seen, root * eps - rest * x), "x stands in the place of x₀; they differ")
        expect(not close(seen, right * root), "divide by √ᾱ, as x₀ is")
        expect(not close(seen, (eps - (1 - share) * x) / share), "some roots are missing")
        expect(close(seen, right), "it is not √ᾱ·ε − √(1−ᾱ)·x₀ with the x₀ that x and ε tell")
    return "whoever knows ε knows v"


@exercise("at most γ")
def check_capped_weight(capped_weight):
    signal = torch.cat([levels(9, 0), torch.tensor([0.01, 0.5, 0.8333, 0.9, 0.99, 0.999])])
    snr = signal / (1 - signal)
    cost = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}
    for most in (5.0, 1.0, 20.0):
        for kind, own in cost.items():
            seen = tensor(capped_weight(signal, kind, most), signal.shape)
            right, said = snr.clamp(max=most) / own, f"for {kind!r} and at most {most:g}"
            if kind != "x0":
                expect(
                    not close(seen, snr.clamp(max=most)),
                    f"{said}: a wrong picture costs something there already; divide by that",
                )
                expect(
                    not close(seen, snr.clamp(max=most) * own),
                    f"{said}: divide, where you multiply",
                )
            if kind == "v":
                expect(
                    not close(seen, snr.clamp(max=most) / snr),
                    f"{said}: that is right for ε; v costs SNR + 1",
                )
            expect(
                not close(seen, snr.clamp(min=most) / own),
                f"{said}: the ratio is at *most* that; yours is at least",
            )
            expect(not close(seen, signal.clamp(max=most) / own), f"{said}: ᾱ is not the SNR")
            expect(not close(seen, snr / own), f"{said}: nothing is capped")
            expect(close(seen, right), f"{said}: the weights are off")
    return "the last grains count no more than most"


@exercise("keep what is known")
def check_keep_known(keep_known):
    for seed, shape in enumerate([(2, 3, 6, 6), (1, 3, 4, 8)]):
        x, picture, noise = (draws(*shape, seed=seed + 10 * i) for i in range(3))
        mask = (draws(shape[0], 1, *shape[2:], seed=seed + 40) > 0).float()
        signal = levels(shape[0], seed)
        seen = tensor(keep_known(x, picture, mask, noise, signal), x.shape)
        known = add_noise(picture, noise, signal)
        right = mask * known + (1 - mask) * x
        expect(
            not close(seen, mask * x + (1 - mask) * known),
            "the mask is turned round: where it is 1, the picture is known",
        )
        expect(
            not close(seen, mask * picture + (1 - mask) * x),
            "the known part has no noise; it must be as noisy as x is",
        )
        expect(
            not close(seen, mask * (picture + noise) + (1 - mask) * x),
            "picture and noise are added as they are; ᾱ says how much of each",
        )
        expect(
            not close(seen, mask * known + x),
            "x is there twice where the picture is known; take it out there",
        )
        expect(close(seen * mask, known * mask), "where the picture is known, it is another")
        expect(close(seen, right), "where nothing is known, x must stay as it is")
    return "it fills what is missing, and keeps what is there"
