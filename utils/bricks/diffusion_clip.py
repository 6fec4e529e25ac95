"""The bricks of lesson 13_diffusion_clip.

Built by `make build` from lessons/13_diffusion_clip.py: edit them there.
"""

import copy
import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from utils import checkpoints, data, device
from utils.bricks.clip import CLIP
from utils.bricks.diffusion import Diffusion
from utils.bricks.sampling import ddim_step, invert, look, signal_at
from utils.bricks.vqgan import PerceptualDistance
from utils.bricks.zero_shot import class_vectors, image_vectors
from utils.given import takes


@torch.no_grad()
def text_direction(
    clip: CLIP, labels: Sequence[str], source: str, target: str
) -> Tensor:
    """From one way to draw to another, as the text tower has it: (d,), of length 1.

    source, target: templates such as "a flat drawing of {}". The mean, over labels, of
    the difference of their vectors, which have length 1. Gal et al. 2022, sec. 4.2.
    """
    ends = [class_vectors(clip, list(labels), [text]) for text in (source, target)]
    return F.normalize((ends[1] - ends[0]).mean(0), dim=0)


def directional_loss(before: Tensor, after: Tensor, direction: Tensor) -> Tensor:
    """1 − cos(ΔI, ΔT): 0 for the very way of the texts, 2 for the opposite: → (B,).

    before, after: vectors of length 1 of the pictures, (B, d); direction: ΔT, (d,).
    Kim et al. 2022, eq. 8.
    """
    return 1 - F.cosine_similarity(after - before, direction, dim=-1)


def log_form(loss: Tensor) -> Tensor:
    """−log((2 − L)/2), as in DiffusionCLIP's released code: 0 at 0, endless at 2."""
    return -((2 - loss) / 2).log()


def decode(
    model: Diffusion, x: Tensor, times: Sequence[int], checkpointed: bool = True
) -> Tensor:
    """`walk` without dice, with a gradient to the weights: → pictures (B, 3, S, S).

    x: at times[0]; times: see `Diffusion.times`; checkpointed: keep only what lies
    between the steps. Values are about in [0, 1], not clamped: a clamp has no slope.
    """

    def step(x: Tensor, now: int, then: int) -> Tensor:
        levels = signal_at(model, now, len(x)), signal_at(model, then, len(x))
        return ddim_step(*look(model, x, now, clamp=False), *levels)

    for now, then in zip(times, times[1:], strict=False):
        if checkpointed:
            x = checkpoint(step, x, now, then, use_reentrant=False)
        else:
            x = step(x, now, then)
    return x / 2 + 0.5


def copy_of(model: Diffusion) -> Diffusion:
    """Another U-Net with the same weights; CLIP is shared."""
    return copy.deepcopy(model, {id(model.clip): model.clip})


def enlarged(pictures: Tensor, guide: CLIP) -> Tensor:
    """Pictures (B, 3, S, S) in the size that a guide reads."""
    return F.interpolate(pictures, (guide.image_size,) * 2, mode="bilinear")


@takes(pictures="pictures", first="from 1", inner="from 1", steps="from 1")
@takes(batch="from 1", lr="finite", keep="finite", identity="finite", seed="whole")
def fine_tune(
    model: Diffusion,
    guide: CLIP,
    pictures: Tensor,
    direction: Tensor,
    *,
    first: int = 500,
    inner: int = 5,
    steps: int = 20,
    batch: int = 6,
    lr: float = 4e-4,
    keep: float = 0.3,
    identity: float = 0.1,
    seed: int = 0,
    loss=None,
) -> Iterator[tuple[Diffusion, float]]:
    """A copy of the model that is tuned, and the loss, after each step.

    pictures: of the source, (N, 3, S, S) in [0, 1]; direction: see `text_direction`;
    first: t₀; inner: steps of the way back; keep, identity: weights of L1 and of the
    perceptual distance; loss: another one than the directional, (rows, vectors) → (B,).
    Raises ValueError in one sentence. Kim et al. 2022, alg. 1 and 2.
    """
    if not 1 <= first < model.steps:
        raise ValueError(f"first is {first}; choose a time from 1 to {model.steps - 1}")
    times, tuned = model.times(inner, first), copy_of(model)
    tuned.unet.requires_grad_(True)
    here, size = model.signal.device, min(batch, len(pictures))
    pictures = pictures.to(here)
    latents = invert(model, pictures, 20, first=first)
    before = image_vectors(guide, pictures)
    distance, draw = PerceptualDistance(guide), device.generator(seed)
    optimizer = torch.optim.Adam(tuned.unet.parameters(), lr)

    def directional(rows: Tensor, after: Tensor) -> Tensor:
        return log_form(directional_loss(before[rows], after, direction))

    for _ in range(steps):
        rows = torch.randperm(len(pictures), generator=draw)[:size].to(here)
        with torch.enable_grad():
            after = decode(tuned, latents[rows], times)
            large, old = enlarged(after, guide), enlarged(pictures[rows], guide)
            told = (loss or directional)(rows, guide.encode_image(large)).mean()
            whole = told + keep * (after - pictures[rows]).abs().mean()
            whole = whole + identity * distance(large, old).mean()
            weights = [*tuned.unet.parameters()]  # captions' own weights are not used
            grads = torch.autograd.grad(whole, weights, allow_unused=True)
        for parameter, grad in zip(weights, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        yield tuned, told.item()


@torch.no_grad()
def mixed(model: Diffusion, tuned: Diffusion, strength: float) -> Diffusion:
    """A copy with the weights (1 − s)·old + s·tuned: 0 gives the old, 1 the tuned."""
    found = copy_of(model)
    ends = model.unet.parameters(), tuned.unet.parameters()
    for weight, old, new in zip(found.unet.parameters(), *ends, strict=True):
        weight.copy_(old + strength * (new - old))
    return found


@functools.cache
def tuned_to(style: str) -> Diffusion:
    """The model `diffusion`, tuned to draw in one of the data's styles; once for each.

    On 24 flat drawings of `train`, or, for the flat style, on as many in 3D.
    """
    if style not in data.STYLES:
        known = ", ".join(data.STYLES)
        raise ValueError(f"there is no style {style!r:.60}; choose one of {known}")
    model, clip = checkpoints.load("diffusion"), checkpoints.load("clip_resnet")
    source = "fluent" if style == "twemoji" else "twemoji"
    pairs = data.load_emoji("train").where(skin_tone="none", style=source)
    rows = torch.randperm(len(pairs.pictures), generator=device.generator(0))[:24]
    drawn = F.adaptive_avg_pool2d(pairs.pictures[rows] / 255, model.side)
    words = [data.STYLE_WORDS[name]["en"][0] for name in (source, style)]
    templates = [f"a {word} drawing of {{}}" for word in words]
    labels = [pairs.table["label_en"][row] for row in rows.tolist()]
    direction = text_direction(clip, labels, *templates)
    *_, (tuned, _) = fine_tune(model, clip, drawn, direction)
    return tuned


@takes(pictures="pictures", strength="finite")
def edit(
    pictures: Tensor,
    style: str,
    *,
    strength: float = 1.0,
    model: Diffusion | None = None,
    tuned: Diffusion | None = None,
) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1], drawn anew in one of the data's styles.

    strength: 0 for the way there and back alone, 1 for the tuned network; model, tuned:
    `diffusion` and what `tuned_to` makes of it by default. Raises ValueError in one
    sentence. Kim et al. 2022, sec. 3.2.
    """
    tuned = tuned or tuned_to(style)
    model = model or checkpoints.load("diffusion")
    first = model.steps // 2
    x = invert(model, pictures.to(model.signal.device), 20, first=first)
    with torch.no_grad():
        drawn = decode(mixed(model, tuned, strength), x, model.times(5, first))
    return drawn.clamp(0, 1)
