"""The bricks of lesson 12_clip_guidance.

Built by `make build` from lessons/12_clip_guidance.py: edit them there.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import checkpoints, device
from utils.bricks.clip import CLIP
from utils.bricks.dalle import check_prompts, each_seed
from utils.bricks.diffusion import Diffusion, add_noise, read_off, spread
from utils.bricks.sampling import clamped, ddim_step, signal_at
from utils.bricks.vqgan_clip import (
    cut_boxes,
    cutouts,
    prompt_loss,
    starting_pictures,
    targets,
)
from utils.given import takes


def blended(x0: Tensor, x: Tensor, signal: Tensor) -> Tensor:
    """√(1 − ᾱ)·x̂₀ + (1 − √(1 − ᾱ))·x_t: what the guide is shown.

    x0, x: (B, …); signal: ᾱ of each row, (B,). Disco Diffusion, disco.py.
    """
    share = (1 - spread(signal, x)).sqrt()
    return share * x0 + (1 - share) * x


def cut_counts(t: int, times: int, cuts: int) -> tuple[int, int]:
    """How many of `cuts` are overviews and how many inner crops, at time t of `times`.

    Three of four are overviews in the first 40 % of the way, where t is large, and a
    quarter after that; quarters are rounded down. Disco Diffusion's default schedule.
    """
    few = cuts // 4
    return (cuts - few, few) if t >= 0.6 * times else (few, cuts - few)


def two_kinds(
    picture: Tensor,
    generator: torch.Generator,
    out: int,
    overviews: int,
    inner: int,
    least: int = 12,
) -> Tensor:
    """Overviews and crops of a picture (1, 3, S, S): (overviews + inner, 3, out, out).

    Overviews are in turn as it is, grey, mirrored, and both; crops are squares with
    sides from `least` on, half of them mirrored. Disco Diffusion, MakeCutoutsDango.
    """
    whole = F.interpolate(picture, (out, out), mode="bilinear")
    grey = whole.mean(1, keepdim=True).expand_as(whole)
    kinds = [whole, grey, whole.flip(3), grey.flip(3)]
    seen = [kinds[i % 4] for i in range(overviews)]
    draws = torch.rand(inner, 4, dtype=torch.float64, generator=generator)
    if inner:
        boxes = cut_boxes(draws[:, :3], picture.shape[2], least)
        seen.append(cutouts(picture, boxes, out, draws[:, 3] < 0.5))
    return torch.cat(seen)


def total_variation(x: Tensor) -> Tensor:
    """The mean squared steps to the right and to the lower neighbour: → (B,)."""
    right, down = x.diff(dim=3), x.diff(dim=2)
    return right.square().mean((1, 2, 3)) + down.square().mean((1, 2, 3))


def beyond(x: Tensor) -> Tensor:
    """How far each number lies outside of [−1, 1]: 0 within, the same shape."""
    return x - x.clamp(-1, 1)


def limited(grad: Tensor, most: float) -> Tensor:
    """A gradient (B, …), of which no row has a root mean square above `most`.

    A smaller one is left as it is. Disco Diffusion, `clamp_grad`.
    """
    size = grad.flatten(1).square().mean(1).sqrt()
    return grad * spread((most / size).clamp(max=1), grad)


SCALE, MOST = 400.0, 1.0  # loudness of a guide and its limit, as measured for 25 steps


def bent_look(
    model: Diffusion,
    clip: CLIP,
    x: Tensor,
    t: int,
    wishes: Sequence[tuple[Tensor, Tensor]],
    draws: Sequence[torch.Generator],
    *,
    scale: float = SCALE,
    most: float = MOST,
    cuts: int = 8,
    variation: float = 0.0,
    limits: float = 0.0,
    saturation: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(x₀, ε) as seen in x (B, 3, S, S) at time t, bent by what a CLIP says.

    wishes: vectors and weights of each picture's prompt, see `targets`; draws: a
    generator for each picture's cut-outs; scale: how loud the guide is; most: see
    `limited`; variation, limits, saturation: weights of total variation and of what
    lies beyond [−1, 1], squared and not. Dhariwal & Nichol 2021, alg. 2.
    """
    times = torch.full((len(x),), t, device=x.device)
    signal, counts = model.signal[times], cut_counts(t, model.steps, cuts)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0, eps = model.read(x, times)
        outside = beyond(x0)
        loss = variation * total_variation(x0).sum()
        loss = loss + limits * outside.square().mean((1, 2, 3)).sum()
        loss = loss + saturation * outside.abs().mean((1, 2, 3)).sum()
        shown = blended(x0, x, signal) / 2 + 0.5
        for picture, wish, draw in zip(shown.split(1), wishes, draws, strict=True):
            seen = two_kinds(picture, draw, clip.image_size, *counts)
            loss = loss + scale * prompt_loss(clip, seen, *wish)
        (slope,) = torch.autograd.grad(loss, x)
    eps = eps.detach() + (1 - spread(signal, x)).sqrt() * limited(slope, most)
    return read_off("eps", eps, x.detach(), signal)


def guided_walk(
    model: Diffusion,
    clip: CLIP,
    wishes: Sequence[tuple[Tensor, Tensor]],
    seeds: Sequence[int],
    times: Sequence[int],
    start: Tensor | None = None,
    eta: float = 0.0,
    **how,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Lesson 11's `walk` with bent answers; yields (x, x₀ as seen in it).

    seeds: of each picture's noise, and of its cut-outs; times: see `walk`; start: None,
    or pictures (B, 3, S, S) in [0, 1] that get the noise of times[0]; how: see
    `bent_look`.
    """
    noise, _ = model.begin(None, seeds)
    x, draws = noise(), [device.generator(seed) for seed in seeds]
    if start is not None:
        x = add_noise(2 * start.to(x) - 1, x, signal_at(model, times[0], len(x)))
    for now, then in zip(times, times[1:], strict=False):
        x0, _ = bent_look(model, clip, x, now, wishes, draws, **how)
        levels = signal_at(model, now, len(x)), signal_at(model, then, len(x))
        x0, eps = clamped(x0, x, levels[0])
        yield x, x0
        x = ddim_step(x0, eps, *levels, eta, noise() if eta and then >= 0 else None)
    yield x, x


@takes(prompts="texts", seed="seeds", steps="from 1", skip="from 0", start="a picture")
@takes(eta="finite", scale="finite", most="finite", cuts="from 1")
@takes(variation="finite", limits="finite", saturation="finite")
def guide(
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int] = 0,
    steps: int = 25,
    start: Tensor | None = None,
    skip: int | None = None,
    eta: float = 0.0,
    scale: float = SCALE,
    most: float = MOST,
    cuts: int = 8,
    variation: float = 0.0,
    limits: float = 0.0,
    saturation: float = 0.0,
    clip: CLIP | None = None,
    model: Diffusion | None = None,
) -> Iterator[Tensor]:
    """Pictures (B, 3, S, S) in [0, 1] as they are seen at each step; the last stays.

    prompts: one for each picture, with parts and weights, see lesson 09; seed: one for
    all, or one each; start: pictures (3, H, W) or (B, 3, H, W) in [0, 1] that replace
    the first `skip` of the `steps`, half of them unless told; eta: see `ddim_step`;
    clip, model: `clip_resnet` and `diffusion` by default, the model is asked without
    captions and no network changes; the others: see `bent_look`. Raises ValueError in
    one sentence. Crowson 2021; Disco Diffusion.
    """
    prompts = check_prompts(prompts)
    clip = clip or checkpoints.load("clip_resnet")
    model = model or checkpoints.load("diffusion")
    seeds, times = each_seed(seed, len(prompts)), model.times(steps)
    if start is None and skip:
        raise ValueError(f"{skip} steps are skipped without a picture; give a start")
    skip = (0 if start is None else steps // 2) if skip is None else skip
    if skip >= steps:
        raise ValueError(f"{skip} of {steps} steps are skipped; leave one at least")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; give a share from 0, no dice, to 1, DDPM's")
    if most <= 0:
        raise ValueError(f"most is {most}; give a number above 0")
    clip.eval()  # BatchNorm must not learn from cut-outs
    wishes = [targets(clip, prompt) for prompt in prompts]
    if start is not None:
        start = starting_pictures(start, len(prompts), model.side)
    how = {"scale": scale, "most": most, "cuts": cuts, "variation": variation}
    how |= {"limits": limits, "saturation": saturation}
    walk = guided_walk(model, clip, wishes, seeds, times[skip:], start, eta, **how)
    return ((seen / 2 + 0.5).clamp(0, 1) for _, seen in walk)
