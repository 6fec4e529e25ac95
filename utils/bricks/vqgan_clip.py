"""The bricks of lesson 09_vqgan_clip.

Built by `make build` from lessons/09_vqgan_clip.py: edit them there.
"""

import re
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import checkpoints, device
from utils.bricks.clip import CLIP
from utils.bricks.dalle import check_prompts, each_seed
from utils.bricks.vq_vae import VQVAE, nearest_code
from utils.bricks.zero_shot import class_vectors
from utils.given import takes


def quantised(z: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of every latent; backward, as if z had not been touched.

    z: (..., d); codebook: (K, d). Returns (..., d). van den Oord et al. 2017, sec. 3.2.
    """
    chosen = codebook[nearest_code(z, codebook)]
    return z + (chosen - z).detach()


class ClampWithGrad(torch.autograd.Function):
    """x.clamp(low, high); backward, a gradient passes unless it leads further out.

    nerdyrodent/VQGAN-CLIP, generate.py.
    """

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        outside = x - x.clamp(
            ctx.low, ctx.high
        )  # above 0 beyond high, below 0 under low
        return grad * (grad * outside >= 0), None, None


def spherical_distance(u: Tensor, v: Tensor) -> Tensor:
    """2·arcsin²(‖u − v‖/2) = θ²/2, θ the angle between u and v: (..., d) twice → (...).

    Any lengths; they broadcast. nerdyrodent/VQGAN-CLIP, generate.py.
    """
    chord = (F.normalize(u, dim=-1) - F.normalize(v, dim=-1)).norm(dim=-1)
    # opposite vectors: arcsin has an infinite slope at 1
    return 2 * (chord / 2).clamp(max=1 - 1e-7).arcsin().square()


def cut_boxes(draws: Tensor, size: int, least: int, power: float = 1.0) -> Tensor:
    """Random squares inside of a picture of size × size: (N, 3) int64, side, top, left.

    draws: (N, 3) float64 in [0, 1), one row a square. The side is
    int(U^power·(size − least) + least); places are uniform. nerdyrodent/VQGAN-CLIP.
    """
    side = (draws[:, 0] ** power * (size - least) + least).long()
    corner = (draws[:, 1:] * (size - side + 1).unsqueeze(1)).long()
    return torch.cat([side.unsqueeze(1), corner], 1)


def cutouts(picture: Tensor, boxes: Tensor, out: int, mirrored: Tensor) -> Tensor:
    """Squares of a picture (1, 3, S, S), each enlarged to `out`: (N, 3, out, out).

    boxes: (N, 3) int64, side, top, left; mirrored: which to turn around, (N,) bool.
    """
    cuts = []
    for (side, top, left), turn in zip(boxes.tolist(), mirrored.tolist(), strict=True):
        cut = picture[:, :, top : top + side, left : left + side]
        cut = F.interpolate(cut, (out, out), mode="bilinear")
        cuts.append(cut.flip(3) if turn else cut)
    return torch.cat(cuts)


def views(
    picture: Tensor,
    generator: torch.Generator,
    out: int,
    cuts: int = 8,
    least: int = 24,
    power: float = 1.0,
    noise: float = 0.1,
) -> Tensor:
    """What the guide gets to see of a picture (1, 3, S, S): (cuts, 3, out, out).

    Random cut-outs with sides from `least` on, half of them mirrored, each with noise
    of a strength of its own, up to `noise`.
    """
    draws = torch.rand(cuts, 5, dtype=torch.float64, generator=generator)
    grains = torch.randn(cuts, 3, out, out, generator=generator).to(picture.device)
    boxes = cut_boxes(draws[:, :3], picture.shape[2], least, power)
    strength = (noise * draws[:, 4]).to(picture).view(-1, 1, 1, 1)
    return cutouts(picture, boxes, out, draws[:, 3] < 0.5) + strength * grains


@takes(prompt="text")
def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """A prompt's parts: "a sun | a face:-0.5" → [("a sun", 1), ("a face", -0.5)].

    A weight stands right behind a colon, at the end: "flag: France" and "keycap: 1"
    have none. For a text that ends like a weight, write one: "half past 7:30:1".
    Raises ValueError if a part is empty or every weight is 0.
    """
    found = []
    for part in prompt.split("|"):
        match = re.fullmatch(
            r"(.*\S):([-+]?(?:\d{1,4}(?:\.\d{0,4})?|\.\d{1,4}))", part.strip()
        )
        text, weight = match.groups() if match else (part.strip(), 1)
        if not text:
            raise ValueError(
                f"a part of {prompt!r:.60} is empty; write 'a heart | a face:-0.5'"
            )
        found.append((text, float(weight)))
    if not any(weight for _, weight in found):
        raise ValueError(f"every weight of {prompt!r:.60} is 0; give one part another")
    return found


@torch.no_grad()
def targets(guide: CLIP, prompt: str) -> tuple[Tensor, Tensor]:
    """The vectors (P, d) and the weights (P,) of a prompt's parts."""
    texts, weights = zip(*weighted_parts(prompt), strict=True)
    vectors = class_vectors(guide, list(texts))
    return vectors, torch.tensor(weights, device=vectors.device)


def prompt_loss(guide: CLIP, seen: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
    """Σ w·θ²/2, θ² averaged over what the guide sees: (N, 3, S, S) → a scalar."""
    angles = spherical_distance(
        guide.encode_image(seen).unsqueeze(1), vectors
    )  # (N, P)
    return angles.mean(0) @ weights


def within(z: Tensor, codebook: Tensor) -> Tensor:
    """Latents (..., d), each channel clamped to what the codes (K, d) span."""
    return z.clamp(codebook.amin(0), codebook.amax(0))


def random_codes(codes: int, side: int, seeds: Sequence[int]) -> Tensor:
    """A grid for each seed, all codes alike likely: (B, side, side) int64."""
    grids = [
        torch.randint(codes, (side, side), generator=device.generator(s)) for s in seeds
    ]
    return torch.stack(grids)


def starting_pictures(start: Tensor, count: int, side: int) -> Tensor:
    """One picture for all prompts, or one each, of any size → (count, 3, side, side).

    start: (3, H, W) or (1 or count, 3, H, W), float in [0, 1]; what is not square gets
    white at two sides. Raises ValueError in one sentence for what is no such thing.
    """
    remedy = "give a float tensor (3, H, W) in [0, 1], e.g. of utils.pictures.read"
    if not isinstance(start, Tensor):
        raise ValueError(f"start is a {type(start).__name__}; {remedy}")
    shape, start = tuple(start.shape), start.unsqueeze(0) if start.ndim == 3 else start
    fits = start.ndim == 4 and start.shape[1] == 3 and 0 not in shape
    if not fits or not start.is_floating_point():
        raise ValueError(f"start is {start.dtype} {shape}; {remedy}")
    if len(start) not in (1, count):
        raise ValueError(
            f"there are {count} prompts and {len(start)} pictures to start from; "
            "give one picture, or one for each prompt"
        )
    if not (start.isfinite().all() and start.min() >= 0 and start.max() <= 1):
        raise ValueError(f"start holds values outside of [0, 1]; {remedy}")
    height, width = (
        max(1, round(x * side / max(start.shape[2:]))) for x in start.shape[2:]
    )
    small = F.interpolate(
        start.float(), (height, width), mode="bicubic", antialias=True
    )
    left, top = (side - width) // 2, (side - height) // 2
    edges = (left, side - width - left, top, side - height - top)
    return F.pad(small.clamp(0, 1), edges, value=1.0).expand(count, -1, -1, -1)


@takes(prompts="texts", seed="seeds", steps="from 1", start="a picture")
@takes(pull="finite", lr="finite")
def optimise(
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int] = 0,
    steps: int = 200,
    start: Tensor | None = None,
    pull: float = 0.3,
    lr: float = 0.15,
    guide: CLIP | None = None,
    vqgan: VQVAE | None = None,
    **how,
) -> Iterator[Tensor]:
    """Pictures (B, 3, S, S), one after each step, of latents that a CLIP pulls at.

    prompts: one for each picture, with parts and weights, see `weighted_parts`; seed:
    one for all, or one each; start: pictures instead of random codes; pull: how much
    the latents are then held to them. guide, vqgan: `clip_resnet` and `vqgan` by
    default. how: see `views`. One seed gives the same picture alone or among others.
    Raises ValueError in one sentence. Crowson et al. 2022, sec. 3.
    """
    prompts, seeds = check_prompts(prompts), each_seed(seed, len(prompts))
    guide = guide or checkpoints.load("clip_resnet")
    vqgan = vqgan or checkpoints.load("vqgan")
    guide.eval(), vqgan.eval()  # BatchNorm must not learn from batches of cut-outs
    wishes = [targets(guide, prompt) for prompt in prompts]
    side = guide.image_size
    if not 1 <= how.get("least", 1) <= side or how.get("cuts", 1) < 1:
        raise ValueError(
            f"a cut-out has sides from 1 to {side}, and there is at least one"
        )
    place = vqgan.codebook.vectors.device
    if start is None:
        codes = random_codes(vqgan.codes, side // vqgan.factor, seeds).to(place)
        pull = 0.0  # there is nothing to hold to
    else:
        codes = vqgan.encode(starting_pictures(start, len(prompts), side).to(place))
    return walk(guide, vqgan, wishes, codes, seeds, steps, pull, lr, how)


def walk(guide, vqgan, wishes, codes, seeds, steps, pull, lr, how) -> Iterator[Tensor]:
    """The steps of `optimise`, from grids of codes (B, h, w)."""
    codebook = vqgan.codebook.vectors
    first = codebook[codes].split(1)
    latents = [z.clone().requires_grad_() for z in first]  # (1, h, w, d) each
    optimizer = torch.optim.Adam(latents, lr)
    for step in range(steps):
        with torch.enable_grad():  # whoever asks for pictures may have switched it off
            for z, z0, wish, seed in zip(latents, first, wishes, seeds, strict=True):
                drawn = vqgan.draw(quantised(z, codebook))
                picture = ClampWithGrad.apply(drawn, 0.0, 1.0)
                seen = views(
                    picture, device.generator(seed, step + 1), guide.image_size, **how
                )
                loss = prompt_loss(guide, seen, *wish) + pull * F.mse_loss(z, z0)
                (z.grad,) = torch.autograd.grad(loss, z)
        optimizer.step()
        with torch.no_grad():
            for z in latents:
                z.copy_(within(z, codebook))
            found = nearest_code(torch.cat(latents), codebook)
        yield vqgan.decode(found)


@takes(pictures="pictures", prompt="text")
@torch.no_grad()
def score(guide: CLIP, pictures: Tensor, prompt: str) -> Tensor:
    """How well pictures (B, 3, S, S) fit a prompt in the guide's eyes: (B,).

    Minus the loss over sixteen views, the same for all: the higher the better.
    """
    wish = targets(guide, prompt)
    seen = [
        views(picture.unsqueeze(0), device.generator(0), guide.image_size, cuts=16)
        for picture in pictures
    ]
    return -torch.stack([prompt_loss(guide, look, *wish) for look in seen])
