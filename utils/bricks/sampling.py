"""The bricks of lesson 11_sampling.

Built by `make build` from lessons/11_sampling.py: edit them there.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from utils.bricks.diffusion import Diffusion, read_off, spread
from utils.given import takes


def ddim_step(
    x0: Tensor,
    eps: Tensor,
    now: Tensor,
    before: Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """From x_t to x_s, s < t: picture and noise as they are seen, at new strengths.

    x0, eps: (B, …), as seen in x_t; now, before: ᾱ_t and ᾱ_s of each row, (B,); eta:
    how much of the noise is new, 0 for none, 1 for DDPM's β̃; noise: (B, …), the new
    one, None for none. Song et al. 2021, eq. 12 and 16.
    """
    now, before = spread(now, x0), spread(before, x0)
    if not eta:
        return before.sqrt() * x0 + (1 - before).sqrt() * eps
    variance = eta**2 * (1 - before) / (1 - now) * (1 - now / before)  # σ²
    old = (1 - before - variance).clamp(min=0).sqrt()  # rounding may end below 0
    x = before.sqrt() * x0 + old * eps
    return x if noise is None else x + variance.sqrt() * noise


def clamped(x0: Tensor, x: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """The picture within [−1, 1], and the noise that x_t holds beside *it*.

    x0, x: (B, …); signal: ᾱ of each row, (B,), below 1. Returns both, (B, …).
    """
    return read_off("x0", x0.clamp(-1, 1), x, signal)


def look(
    model: Diffusion,
    x: Tensor,
    t: int,
    text: Tensor | None = None,
    guidance: float = 1.0,
    clamp: bool = True,
) -> tuple[Tensor, Tensor]:
    """(x₀, ε) as the model sees them in x (B, 3, S, S) at time t.

    text: (B, dim) or None; guidance: see `Diffusion.read`; clamp: no pixel lies beyond
    [−1, 1], and the noise is what is left of x then.
    """
    times = torch.full((len(x),), t, device=x.device)
    x0, eps = model.read(x, times, text, guidance)
    return clamped(x0, x, model.signal[times]) if clamp else (x0, eps)


def signal_at(model: Diffusion, t: int, rows: int) -> Tensor:
    """ᾱ at a time, (rows,); −1 stands for the picture itself, where it is 1."""
    left = model.signal[t] if t >= 0 else model.signal.new_ones(())
    return left.expand(rows)


@torch.no_grad()
def walk(
    model: Diffusion,
    x: Tensor,
    times: Sequence[int],
    text: Tensor | None = None,
    *,
    guidance: float = 1.0,
    eta: float = 0.0,
    clamp: bool = True,
    noise=None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """From x at times[0] to times[-1]; yields (x, x₀ as seen in it), and the end twice.

    times: falling from noise to −1, a picture, as `Diffusion.times` gives them; or
    rising, from a picture back to its noise (eta 0). eta: in [0, 1], see `ddim_step`;
    noise: a function without arguments that gives new noise, needed if eta is not 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; give a share from 0, no dice, to 1, DDPM's")
    if eta and (noise is None or times[0] < times[-1]):
        raise ValueError("dice need noise and a walk to a picture; give an eta of 0")
    for now, then in zip(times, times[1:], strict=False):
        # a picture has no time of its own: the network is told the least
        x0, eps = look(model, x, max(now, 0), text, guidance, clamp)
        yield x, x0
        levels = signal_at(model, now, len(x)), signal_at(model, then, len(x))
        x = ddim_step(x0, eps, *levels, eta, noise() if eta and then >= 0 else None)
    yield x, x


@takes(seed="seeds", steps="whole", guidance="number", eta="number")
@torch.no_grad()
def sample(
    model: Diffusion,
    prompts: Sequence[str] | None = None,
    *,
    seed: int | Sequence[int] = 0,
    guidance: float = 2.0,
    steps: int = 20,
    eta: float = 0.0,
    clamp: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """From noise to pictures, as `Diffusion.stream`, by DDIM's steps; see `walk`.

    A seed gives the same noise, and with eta 0 nearly the same picture, in any number
    of steps. Raises ValueError for what the model or `walk` refuses.
    """
    if not math.isfinite(guidance):
        raise ValueError(f"the guidance is {guidance}; give a number, e.g. 2.0")
    noise, text = model.begin(prompts, seed)
    how = {"guidance": guidance, "eta": eta, "clamp": clamp, "noise": noise}
    yield from walk(model, noise(), model.times(steps), text, **how)


def last(frames: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """The pictures (B, 3, S, S) in [0, 1] at which a walk ends."""
    *_, (x, _) = frames
    return ((x + 1) / 2).clamp(0, 1)


@takes(pictures="pictures", steps="whole", first="whole")
def invert(
    model: Diffusion,
    pictures: Tensor,
    steps: int = 50,
    text: Tensor | None = None,
    first: int | None = None,
) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1] → the noise from which `walk` comes to them.

    text: (B, dim), what the pictures show, or None; first: the time to which it goes,
    see `Diffusion.times`. Without clamping or guidance, which lose what is needed for
    the way back. Song et al. 2021, sec. 4.3.
    """
    if pictures.shape[2:] != (model.side, model.side):
        found = "×".join(map(str, pictures.shape[2:]))
        raise ValueError(f"pictures are {found} pixels; scale them to {model.side}")
    rising = model.times(steps, first)[::-1]
    *_, (noise, _) = walk(model, 2 * pictures - 1, rising, text, clamp=False)
    return noise


def guided(asked: Tensor, free: Tensor, guidance: float) -> Tensor:
    """The answer that goes from `free` through `asked`, guidance times as far.

    asked, free: (B, …), a network's answers with the caption and without; guidance: 0
    for `free`, 1 for `asked`. Ho & Salimans 2022, eq. 6, whose w is guidance − 1.
    """
    return free + guidance * (asked - free)
